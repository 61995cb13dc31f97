"""The rooms of the package as its sources say: who imports what of whom, read and not run."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Import:
    """`from source import name`, in a module."""

    by: str
    line: int
    source: str
    name: str

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.name} from {self.source}"


@dataclass(frozen=True)
class Package:
    """A package whose folders are rooms. A folder whose `__init__` has `__all__` is a face."""

    directory: Path

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """The modules, by their full names."""
        root = self.directory.parent
        parts = ((file, file.relative_to(root).with_suffix("").parts) for file in self.directory.rglob("*.py"))
        return {".".join(name[:-1] if name[-1] == "__init__" else name): file for file, name in parts}

    @cached_property
    def trees(self) -> Mapping[str, ast.Module]:
        return {module: ast.parse(file.read_text()) for module, file in self.files.items()}

    @cached_property
    def faces(self) -> Mapping[str, frozenset[str]]:
        """What each face names."""
        packages = {module for module, file in self.files.items() if file.name == "__init__.py"}
        named = {module: names_in_all(self.trees[module]) for module in packages - {self.directory.name}}
        return {module: names for module, names in named.items() if names is not None}

    def room_of(self, module: str) -> str:
        """The folder of the first floor that a module lies in; a module that lies in none is its own room."""
        return ".".join(module.split(".")[:2])

    def imports(self) -> Iterator[Import]:
        """All imports of own modules, also those for type checkers and those inside functions."""
        for module, tree in self.trees.items():
            yield from imports_of(tree, module, self.directory.name)

    def past_a_face(self) -> Iterator[Import]:
        """Imports from another room of what its face does not name."""
        return (each for each in self.imports() if not self._is_at_the_door(each))

    def _is_at_the_door(self, each: Import) -> bool:
        if each.source == self.directory.name:
            return f"{each.source}.{each.name}" not in self._folders
        if self.room_of(each.by) == self.room_of(each.source):
            return True
        if each.source in self.faces:
            return each.name in self.faces[each.source]
        is_a_module_without_room = each.source not in self._folders and self.room_of(each.source) == each.source
        return is_a_module_without_room and not each.name.startswith("_")

    def unused_names(self, others: Iterable[ast.Module]) -> Iterator[tuple[str, str]]:
        """What a face names and neither another room imports from it, nor one of `others`."""
        outside = [each for tree in others for each in imports_of(tree, "outside", self.directory.name)]
        inside = (each for each in self.imports() if self.room_of(each.by) != self.room_of(each.source))
        used = {(each.source, each.name) for each in [*inside, *outside]}
        for face, names in self.faces.items():
            yield from ((face, name) for name in sorted(names) if (face, name) not in used)

    def modules_of_rooms(self) -> Mapping[str, list[str]]:
        """The modules in each folder, without its `__init__` and `__main__`, and without the folders in it."""
        found: dict[str, list[str]] = {folder: [] for folder in self._folders}
        for module, file in self.files.items():
            if file.name not in {"__init__.py", "__main__.py"}:
                found[module.rpartition(".")[0]].append(module)
        return found

    @cached_property
    def _folders(self) -> frozenset[str]:
        return frozenset(module for module, file in self.files.items() if file.name == "__init__.py")


def names_in_all(tree: ast.Module) -> frozenset[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return frozenset(ast.literal_eval(node.value))
    return None


def imports_of(tree: ast.Module, module: str, root: str) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if source.split(".")[0] == root and not node.level:
                yield from (Import(module, node.lineno, source, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == root:
                    source, _, name = alias.name.rpartition(".")
                    yield Import(module, node.lineno, source or root, name)
