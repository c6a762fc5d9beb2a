"""What a report says of the machine, from the kernel's own texts."""

from bench import machine

CPUINFO = """processor\t: 0
model name\t: AMD EPYC
cpu family\t: 25
model\t\t: 1
flags\t\t: fpu sse2 avx2 fma

processor\t: 1
model name\t: another
cpu family\t: 6
model\t\t: 2
flags\t\t: fpu
"""


def test_the_first_processor_is_named_with_its_generation():
    name, flags = machine.processor(CPUINFO)
    assert name == "AMD EPYC, family 25 model 1"
    assert flags == ["fpu", "sse2", "avx2", "fma"]


def test_memory_is_in_bytes():
    assert machine.memory("MemTotal:       24 kB\nMemFree:  1 kB\n") == 24 * 1024


def test_this_machine_is_described():
    text = str(machine.describe())
    assert "cores" in text
    assert "GB RAM" in text
