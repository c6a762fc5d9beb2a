"""What the tables of `vistrald plan` say, in Russian and in English."""

from typing import Literal

Language = Literal["ru", "en"]

WORDS: dict[str, tuple[str, str]] = {
    "title": ("{name}: {context} токенов контекста, пользователей {users}, KV {kv}",
              "{name}: {context} tokens of context, {users} users, KV {kv}"),
    "item": ("что", "what"),
    "bytes": ("ГБ", "GB"),
    "weights": ("веса", "weights"),
    "repacked": ("переупакованные копии весов", "repacked copies of weights"),
    "kv_cache": ("KV-кэш", "KV cache"),
    "compute": ("буфер вычислений", "compute buffer"),
    "output": ("строки логитов", "rows of logits"),
    "process": ("процесс и словарь", "process and vocabulary"),
    "peak": ("ожидаемый пик", "expected peak"),
    "reserve": ("запас", "reserve"),
    "total": ("нужно всего", "needed in all"),
    "cap": ("предел", "cap"),
    "fits": ("Помещается, остаётся {room} ГБ.", "It fits, {room} GB are left."),
    "fits not": ("НЕ ПОМЕЩАЕТСЯ: не хватает {missing} ГБ.",
                 "IT DOES NOT FIT: {missing} GB are missing."),
    "exact": ("Размеры взяты из заголовка файла.", "Sizes are those of the file's header."),
    "estimate": ("Размеры из каталога или оценка по числу бит на вес.",
                 "Sizes are the catalogue's, or estimated from bits a weight."),
    "published": ("Опубликованные файлы (MLX) занимают {size} ГБ; их сначала преобразуют в GGUF.",
                  "The published files (MLX) take {size} GB; they are converted to GGUF first."),
    "variants": ("Квантования", "Quantizations"),
    "quantization": ("тип", "type"),
    "file": ("файл, ГБ", "file, GB"),
    "needed": ("память, ГБ", "memory, GB"),
    "room": ("запас до предела, ГБ", "left below the cap, GB"),
    "loss": ("потеря качества, KL", "loss of quality, KL"),
    "fitting": ("помещается", "fits"),
    "yes": ("да", "yes"),
    "best": ("лучшее", "best"),
    "no": ("нет", "no"),
    "source of loss": ("KL-расхождение с f16: {source}. Меньше — лучше.",
                       "KL divergence to f16: {source}. Less is better."),
    "rates": ("Ожидаемая скорость ({cores} ядер, чтение памяти {bandwidth} ГБ/с)",
              "Expected rates ({cores} cores, memory is read at {bandwidth} GB/s)"),
    "prefill": ("чтение запроса, токенов/с", "prefill, tokens/s"),
    "decode": ("генерация, токенов/с", "decode, tokens/s"),
    "load": ("загрузка при 1 ГБ/с, с", "load at 1 GB/s, s"),
    "answer": ("ответ за 30 с, если новых токенов запроса {prompt}",
               "answer in 30 s after {prompt} new tokens of prompt"),
    "between": ("Оценка: от ×{least} до ×{most}. Точно измеряет vistrald tune.",
                "An estimate: from ×{least} to ×{most}. vistrald tune measures it."),
    "tokens": ("{count} токенов", "{count} tokens"),
    "disk": ("На диске свободно {free} ГБ.", "{free} GB of disk are free."),
    "remedies": ("Достаточно любого из этих изменений", "Each of these changes is enough"),
    "change": ("изменение", "change"),
    "look": ("посмотреть", "look at it"),
    "no remedy": ("Ни одно отдельное изменение не поможет: нужен сервер с большей памятью.",
                  "No single change is enough: a server with more memory is needed."),
    "comparison": ("Старая модель и новая", "The old model and the new one"),
    "old": ("Старая модель — так, как её загружает старое приложение: mmap вместе с переупаковкой"
            " держит часть весов дважды (верхняя оценка).",
            "The old model is taken as the old application loads it: mmap with repacking holds"
            " a part of the weights twice (an upper bound)."),
    "model": ("модель", "model"),
    "short": ("ответ за 30 с, токенов", "answer in 30 s, tokens"),
    "prompt": ("После запроса из {prompt} новых токенов.", "After {prompt} new tokens of prompt."),
}  # fmt: skip


def say(language: Language, key: str, **values: object) -> str:
    return WORDS[key][0 if language == "ru" else 1].format(**values)
