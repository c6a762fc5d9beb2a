"""The command line; thin. With --json, standard output is one JSON object and nothing else."""

import click

from vistrald import __version__
from vistrald.cli import client, conversion, frameworks, migration, pin, service, sizing, tuning


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Serves one GGUF model through llama.cpp for a Russian legal assistant."""


for command in (
    service.serve,
    service.check_config,
    service.verify_model,
    service.smoke,
    client.ask,
    client.warm,
    tuning.tune,
    sizing.plan,
    frameworks.frameworks,
    migration.migrate,
    conversion.convert,
    conversion.quantize,
    pin.pin,
):
    main.add_command(command)
