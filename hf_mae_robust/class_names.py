"""Names of classes by number, as --id2label gives them."""

import json
from pathlib import Path

MAX_VALUE = 2**16 - 1


def read_id2label(source: str) -> dict[int, str]:
    """Names by value, from a JSON file `{"0": "sky", ...}`, or from a number of classes without names.

    Raises ValueError: no such file, or something else in it.
    """
    if str(source).isdigit():
        if not 1 <= int(source) <= MAX_VALUE:
            raise ValueError(f"--id2label {source}: a number of classes from 1 to {MAX_VALUE:,}.")
        return {i: f"class_{i}" for i in range(int(source))}
    try:
        content = json.loads(Path(source).read_text(encoding="utf-8"))
        names = {int(value): str(name) for value, name in content.items()}
    except OSError as error:
        raise ValueError(
            f"--id2label {source}: cannot be read ({error.strerror}). Give a JSON file or a number of classes."
        ) from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f'--id2label {source}: must hold {{"0": "name", "1": "name", ...}} ({error}).') from error
    if not names or min(names) < 0 or max(names) > MAX_VALUE:
        raise ValueError(
            f"--id2label {source}: the values of a map go from 0 to {MAX_VALUE:,}; got {sorted(names)[:4]}."
        )
    return names
