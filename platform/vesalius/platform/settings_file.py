"""Settings in a file: YAML or JSON (which is YAML), in which nothing is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from pathlib import Path

_LARGEST_BYTES = 2**20


def read_yaml(path: Path, kind: str) -> Any:
    """Return what a YAML file holds: plain values, lists and mappings.

    Args:
        path: of the file.
        kind: what it should be, such as "a study file"; for the message.

    Raises:
        SettingError: it cannot be read, is too large, is no YAML, or refers to other places in itself.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml comes without types
        """Takes no aliases: by some lines of them a file holds itself, or a billion values."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise SettingError(
                    f"{path} refers to other places by * (line {self.peek_event().start_mark.line + 1}): write the "
                    "values out"
                )
            return super().compose_node(parent, index)

    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise SettingError(f"{path} is too large to be {kind}")
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}): give {kind}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:200]
        raise SettingError(f"{path} is no YAML ({said})") from None
    except RecursionError:
        raise SettingError(f"{path} is nested too deeply: give plain lists and mappings") from None
