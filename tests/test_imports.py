# SPDX-License-Identifier: Apache-2.0
"""What the folder map promises: who imports whom, what a device must not need, what a file carries.

export  ->  trainer  ->  runtime          (left may import right, never back)
"""

from __future__ import annotations

import ast
import functools
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Set
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "trainer", "export", "benchmarks")
MAY_IMPORT = {
    "runtime": {"runtime"},
    "trainer": {"trainer", "runtime"},
    "export": {"export", "trainer", "runtime"},
    "benchmarks": set(PACKAGES),
}
GRAPH_WRITER = "export.graphs"  # the one module of export/ that meets torch: imported lazily
IGNORED_FOLDERS = {"build", "demo", "runs", "engines", "bench", "__pycache__"}

# Absolute paths of somebody's machine, and the shapes of secrets.
PRIVATE = re.compile(
    r"(?<![\w.~}/-])/(?:home|Users|root|work|mnt|media)/[\w.-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:ghp|gho|github_pat|hf|pypi|sk)[-_][A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b"
)
TEXT_SUFFIXES = {
    ".py", ".toml", ".txt", ".md", ".cpp", ".h", ".cu", ".cuh", ".cmake", ".in", ".json", ".yml",
}  # fmt: skip
CODE_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh"}


def files(suffixes: set[str]) -> list[Path]:
    """Files of the project, without hidden folders (environments, caches) and outputs."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            s for s in subfolders if not s.startswith(".") and s not in IGNORED_FOLDERS
        ]
        found += [Path(folder, n) for n in names if Path(n).suffix in suffixes]
    assert found, "the walk over the project found no file"
    return sorted(found)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def imports(path: Path, *, top_level_only: bool = False) -> frozenset[str]:
    """Full names of everything `path` imports, ``if TYPE_CHECKING:`` blocks apart."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: resolve against the file's own package
                package = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join([*package, *filter(None, [node.module])])
            found.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return frozenset(found)


def tops(names: Set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def import_with_blocked(modules_to_import: list[str], blocked: list[str]) -> dict[str, str | None]:
    """Import each module in one fresh interpreter where `blocked` packages cannot be imported.

    Returns module -> None, or the error.
    """
    program = textwrap.dedent(
        """
        import importlib, json, sys

        wanted, blocked = json.loads(sys.argv[1])

        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in blocked:
                    raise ModuleNotFoundError(f"blocked: {name}", name=name)

        sys.meta_path.insert(0, Block())
        outcome = {}
        for name in wanted:
            try:
                importlib.import_module(name)
                outcome[name] = None
            except BaseException as err:
                outcome[name] = f"{type(err).__name__}: {err}"
        print(json.dumps(outcome))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([modules_to_import, blocked])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class TestArrows:
    @pytest.mark.parametrize("package", PACKAGES)
    def test_a_package_imports_only_what_its_arrow_allows(self, package):
        broken = {
            f"{path.relative_to(ROOT)} imports {other}"
            for path in modules(package)
            for other in (tops(imports(path)) & {*PACKAGES, "tests"}) - MAY_IMPORT[package]
        }
        assert not broken

    def test_only_the_graph_writer_meets_the_trainer_and_is_itself_imported_lazily(self):
        broken = set()
        for path in modules("export"):
            if dotted(path) == GRAPH_WRITER:
                continue
            if "trainer" in tops(imports(path)):
                broken.add(f"{dotted(path)} imports the trainer")
            for name in imports(path, top_level_only=True) & {"torch", GRAPH_WRITER}:
                broken.add(f"{dotted(path)} imports {name} when it is imported")
        assert not broken

    def test_no_module_of_the_runtime_names_torch(self):
        guilty = [str(p) for p in modules("runtime") if "torch" in tops(imports(p))]
        assert not guilty

    def test_kernels_include_no_framework(self):
        wrong = {
            f"{path.name}: {line}"
            for path in (ROOT / "csrc" / "kernels").iterdir()
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith("#include")
            and re.search(r"NvInfer|torch|ATen|c10|pybind11|Python\.h|plugins/|bindings/", line)
        }
        assert not wrong


ROOMS = (  # of runtime/, from the ground up; what stands at its root serves them all
    "media", "models", "backends", "faces", "sound", "judging", "flow", "sinks", "web",
    "calibrate", "scan", "demo", "doctor", "stream",
)  # fmt: skip
MAX_FILES = 20  # at the root of a package


def own_imports(path: Path, known: set[str]) -> set[str]:
    """The modules of this project that a module imports, anywhere in it, by their full names."""
    names = imports(path) & known
    return {n for n in names if not any(o.startswith(f"{n}.") for o in names)} - {dotted(path)}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of more than one node that reach each other (Tarjan, 1972: taken apart by peeling)."""
    left = {node: set(others) & set(graph) for node, others in graph.items()}
    while True:
        ends = {n for n, others in left.items() if not others & set(left)}
        starts = set(left) - set().union(*left.values()) if left else set()
        if not ends | starts:
            return [{n, *left[n]} & set(left) for n in left]
        left = {n: others for n, others in left.items() if n not in ends | starts}


class TestTheHouse:
    def test_no_module_is_in_a_circle(self):
        paths = {dotted(p): p for package in PACKAGES for p in modules(package)}
        graph = {name: own_imports(p, set(paths)) for name, p in paths.items()}
        assert len(graph) > 200
        assert circles(graph) == []

    def test_a_circle_would_be_found(self):
        assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [{"b", "c"}] * 2

    def test_no_room_of_the_runtime_is_in_a_circle_and_none_imports_upwards(self):
        folders = {p.name for p in (ROOT / "runtime").iterdir() if (p / "__init__.py").is_file()}
        assert folders == set(ROOMS)
        paths = {dotted(p): p for p in modules("runtime")}

        def room(module: str) -> str:
            return module.split(".")[1] if "." in module else "runtime"

        graph: dict[str, set[str]] = {}
        for name, path in paths.items():
            others = {room(other) for other in own_imports(path, set(paths))}
            graph.setdefault(room(name), set()).update(others - {room(name), "runtime"})
        assert circles(graph) == []
        upwards = {
            f"{name} imports {other}"
            for name in ROOMS
            for other in graph[name] & set(ROOMS)
            if ROOMS.index(other) > ROOMS.index(name)
        }
        assert not upwards
        roots = set(graph) - set(ROOMS) - {"command"}  # which is the commands' own
        helpers = {f"{r} imports {o}" for r in roots for o in graph[r] & set(ROOMS)}
        assert not helpers

    @pytest.mark.parametrize("package", PACKAGES)
    def test_a_package_has_few_files_at_its_root(self, package):
        assert len(list((ROOT / package).glob("*.py"))) <= MAX_FILES


class TestWhatADeviceNeeds:
    def test_import_runtime_needs_nothing_but_numpy(self):
        installed = {
            "av", "cv2", "dlib", "face_recognition_models", "kaldi_native_fbank", "onnx",
            "onnxruntime", "rich", "scipy", "sklearn", "tensorrt", "tensorrt_rtx", "torch",
        }  # fmt: skip
        wanted = ["runtime", "runtime.spec", "runtime.errors", "runtime.backends"]
        wanted += ["runtime.backends.native"]
        outcome = import_with_blocked(wanted, sorted(installed))
        assert outcome == dict.fromkeys(wanted)

    def test_every_module_of_the_runtime_imports_without_torch(self):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra cpu)")
        wanted = [dotted(p) for p in modules("runtime") if p.name != "__main__.py"]
        outcome = import_with_blocked(wanted, ["torch", "trainer", "export"])
        assert outcome == dict.fromkeys(wanted)

    def test_engines_are_built_without_torch_and_without_the_trainer(self):
        pytest.importorskip("onnx", reason="onnx is not installed (extra export)")
        wanted = [dotted(p) for p in modules("export") if dotted(p) != GRAPH_WRITER]
        outcome = import_with_blocked(wanted, ["torch", "trainer"])
        assert "export.build_engine" in outcome
        assert outcome == dict.fromkeys(wanted)


class TestFiles:
    def test_every_source_file_starts_with_its_licence(self):
        without = [
            str(path.relative_to(ROOT))
            for path in files(CODE_SUFFIXES)
            if "SPDX-License-Identifier: Apache-2.0"
            not in path.read_text(encoding="utf-8").partition("\n")[0]
        ]
        assert not without

    def test_no_file_names_a_path_of_one_machine_or_holds_a_secret(self):
        found = {
            f"{path.relative_to(ROOT)}: {match.group()}"
            for path in files(TEXT_SUFFIXES)
            for match in PRIVATE.finditer(path.read_text(encoding="utf-8"))
        }
        assert not found

    def test_every_package_folder_is_a_package(self):
        without = {
            str(path.parent.relative_to(ROOT))
            for package in PACKAGES
            for path in modules(package)
            if not (path.parent / "__init__.py").exists()
        }
        assert not without

    def test_everything_the_code_imports_is_declared(self):
        """A third-party import that no extra names works only by luck."""
        declared = {
            "ai_edge_litert", "aiortc", "atheris", "av", "cryptography", "cv2", "dlib",
            "fastapi", "gi", "google", "hibari", "hypothesis", "jinja2", "jsonschema",
            "kaldi_native_fbank", "matplotlib", "ml_dtypes", "numpy", "onnx", "onnxruntime",
            "onnxscript", "playwright", "prometheus_client", "psutil", "pyarrow", "pytest",
            "pyworld", "pywt", "ray", "rich", "safetensors", "scipy", "sklearn", "sounddevice",
            "tensorboard", "tensorrt", "tensorrt_rtx", "threadpoolctl", "torch", "uvicorn",
            "websockets",
        }  # fmt: skip
        own = {*PACKAGES, "tests"}
        undeclared = {
            f"{path.relative_to(ROOT)} imports {name}"
            for package in own
            for path in modules(package)
            for name in tops(imports(path)) - declared - own - set(sys.stdlib_module_names)
        }
        assert not undeclared


class TestOneOfEach:
    """What stands once, found by how a second one would be written."""

    @pytest.mark.parametrize(
        ("written", "homes"),
        [
            pytest.param(r"1 / \(1 \+ (?:np|math|torch)\.exp", [], id="sigmoid"),
            pytest.param(r"CLOCK_TOLERANCE\w* = ", ["runtime/sound/track.py"], id="tolerance"),
            pytest.param(
                r"math\.ceil\(\(n \+ 1\)", ["runtime/calibrate/conformal.py"], id="conformal"
            ),
            pytest.param(r"\bf[\"'][^\"\n]*</?(?:div|p|td|tr|li|h[1-6]|section)\b", [], id="HTML"),
            pytest.param(r"manual_seed\(.*1_000_003", [], id="seeds of steps"),
            pytest.param(r"\"optimizer/\{", ["trainer/loop/loop.py"], id="state of an optimizer"),
        ],
    )
    def test_it_stands_once(self, written: str, homes: list[str]) -> None:
        found = {
            str(path.relative_to(ROOT))
            for package in ("runtime", "trainer", "export")
            for path in modules(package)
            for line in path.read_text(encoding="utf-8").splitlines()
            if re.search(written, line)
        }
        assert sorted(found) == homes

    def test_no_child_gets_its_parents_ctrl_c(self) -> None:
        """It would end with a traceback of its own, or before it is asked."""
        found = {
            str(path.relative_to(ROOT))
            for package in ("runtime", "trainer", "export", "benchmarks")
            for path in modules(package)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "subprocess.Popen"
            and not any(k.arg == "start_new_session" for k in node.keywords)
        }
        assert found == set()

    def test_tests_of_the_runtime_sleep_in_one_place(self) -> None:
        """Programs that they write, and start, may."""
        found = {
            str(path.relative_to(ROOT))
            for path in sorted((ROOT / "tests" / "runtime").rglob("*.py"))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
        }
        assert found == set()

    def test_the_samples_of_a_token_are_the_specs(self) -> None:
        """640 is a number in the code where a picture has that width, and nowhere else."""
        found = {
            str(path.relative_to(ROOT))
            for package in ("runtime", "trainer", "export")
            for path in modules(package)
            for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
            if token.type == tokenize.NUMBER and token.string == "640"
        }
        assert sorted(found) == ["runtime/spec.py", "runtime/web/picture.py"]
