"""An application with an Alembic history of its own, in a directory of its own."""

import shutil
from pathlib import Path
from typing import Any

import alembic
from alembic import command
from alembic.config import Config


class Application:
    """The application's checkout: env.py, the template that Alembic ships, and the revisions made so far."""

    def __init__(self, directory: Path, url: str, options: dict[str, Any]) -> None:
        (directory / "versions").mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "env.py", directory)
        shutil.copy(Path(alembic.__file__).parent / "templates" / "async" / "script.py.mako", directory)
        self.config = Config()
        self.config.set_main_option("script_location", str(directory))
        self.config.set_main_option("path_separator", "os")
        self.config.attributes.update(url=url, options=options)

    def revise(self) -> str:
        """`alembic revision --autogenerate`. Returns the text of the revision."""
        script = command.revision(self.config, message="next", autogenerate=True)
        assert script is not None
        assert not isinstance(script, list)
        return Path(script.path).read_text()

    def upgrade(self) -> None:
        command.upgrade(self.config, "head")

    def check(self) -> None:
        """`alembic check`: raises if autogenerate would find a difference."""
        command.check(self.config)
