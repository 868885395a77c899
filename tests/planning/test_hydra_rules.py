"""Files of a cloned repository cannot make Hydra run anything. Each case would make a folder if it were run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAKE = "{_target_: os.mkdir, path: ran}"
LOGGING = "{version: 1, handlers: {h: {(): os.mkdir, path: ran}}, root: {handlers: [h]}}"
CASES: dict[str, tuple[dict[str, str], str, str]] = {  # files, words, what the error names
    "a callback of a recipe": (
        {"recipes/evil.yaml": f"hydra: {{callbacks: {{evil: {MAKE}}}}}"}, "recipe=evil", "hydra.callbacks: found evil"
    ),
    "a callback of a sweep": (
        {"recipes/evil.yaml": f"hydra: {{callbacks: {{evil: {MAKE}}}}}"}, "-m recipe=evil quant=q0f16,q4f16_1",
        "hydra.callbacks: found evil",
    ),
    "a choice of callbacks": (
        {
            "conf/hydra/callbacks/evil.yaml": f"evil: {MAKE}",
            "recipes/evil.yaml": "defaults: [{override /hydra/callbacks: evil}]",
        },
        "-m recipe=evil quant=q0f16,q4f16_1", "hydra.callbacks: found evil",
    ),
    "a callback of the folder's build.yaml": (
        {"conf/build.yaml": f"hydra: {{callbacks: {{evil: {MAKE}}}}}"}, "-m quant=q0f16,q4f16_1",
        "hydra.callbacks: found evil",
    ),
    "a launcher": (
        {"recipes/evil.yaml": "hydra: {launcher: {_target_: os.mkdir}}"}, "-m recipe=evil quant=q0f16,q4f16_1",
        "hydra.launcher: found _target_: os.mkdir; allowed: hydra/launcher=one_graph|basic|joblib",
    ),
    "a sweeper": (
        {"conf/hydra/sweeper/evil.yaml": MAKE}, "-m hydra/sweeper=evil quant=q0f16,q4f16_1",
        "hydra.sweeper: found _target_: os.mkdir; allowed: hydra/sweeper=one_graph|basic|optuna",
    ),
    "below a sweeper": (
        {"recipes/evil.yaml": f"hydra: {{sweeper: {{params: {{x: {MAKE}}}}}}}"}, "-m recipe=evil",
        "hydra.sweeper.params.x._target_: found os.mkdir",
    ),
    "a search space that is a function": (
        {"recipes/evil.yaml": "hydra: {sweeper: {custom_search_space: os.mkdir}}"},
        "-m recipe=evil quant=q0f16,q4f16_1",
        "hydra.sweeper.custom_search_space: found os.mkdir",
    ),
    "lines of a shell": (
        {"recipes/evil.yaml": "hydra: {launcher: {setup: [mkdir ran]}}"}, "-m recipe=evil quant=q0f16,q4f16_1",
        "hydra.launcher.setup: found ['mkdir ran']",
    ),
    "a handler of Hydra's log": (
        {"conf/hydra/hydra_logging/evil.yaml": LOGGING}, "-m hydra/hydra_logging=evil quant=q0f16,q4f16_1",
        "hydra.hydra_logging.handlers: found h",
    ),
    "a handler of a job's log": (
        {"recipes/evil.yaml": f"hydra: {{job_logging: {LOGGING}}}"}, "-m recipe=evil quant=q0f16,q4f16_1",
        "hydra.job_logging.handlers: found h",
    ),
    "a variable of the environment": (
        {"recipes/evil.yaml": "hydra: {job: {env_set: {LD_PRELOAD: ./evil.so}}}"}, "recipe=evil",
        "hydra.job.env_set: found LD_PRELOAD",
    ),
    "another folder for the job": (
        {"recipes/evil.yaml": "hydra: {job: {chdir: true}}"}, "recipe=evil", "hydra.job.chdir: found True"
    ),
    "files of Hydra's": (
        {"recipes/evil.yaml": "hydra: {output_subdir: ran}"}, "recipe=evil", "hydra.output_subdir: found ran"
    ),
    "a package on the search path": (
        {"conf/build.yaml": "hydra: {searchpath: [pkg://canary]}", "canary/__init__.py": "import os; os.mkdir('ran')"},
        "quant=q0f16", "hydra.searchpath: found pkg://canary",
    ),
    "_target_ elsewhere": (
        {"recipes/evil.yaml": f"hydra: {{help: {MAKE}}}"}, "recipe=evil", "hydra.help._target_"
    ),
    "_target_ in a recipe's own keys": ({"recipes/evil.yaml": f"model: {MAKE}"}, "recipe=evil", "model._target_"),
    "a sweep's values made while they are resolved": (
        {"recipes/evil.yaml": "hydra: {sweeper: {params: '${oc.create:{_target_: os.mkdir, path: ran}}'}}"},
        "-m recipe=evil quant=q0f16,q4f16_1", "hydra.sweeper.params: found ${oc.create:",
    ),
    "one value of a sweep that is made": (
        {"recipes/evil.yaml": f"""hydra: {{sweeper: {{params: {{name: '${{oc.create:"{MAKE}"}}'}}}}}}"""},
        "-m recipe=evil quant=q0f16,q4f16_1", "hydra.sweeper.params.name: found ${oc.create:",
    ),
    "a sweep's values that are another node": (
        {"recipes/evil.yaml": f"model: {{evil: {MAKE}}}\nhydra: {{sweeper: {{params: '${{model.evil}}'}}}}"},
        "-m recipe=evil quant=q0f16,q4f16_1", "hydra.sweeper.params: found ${model.evil}",
    ),
    "a name that is another node": (
        {"recipes/evil.yaml": f"model: {{evil: {MAKE}}}\nhydra: {{job: {{name: '${{model.evil}}'}}, "
                              "sweeper: {params: {name: '${hydra.job.name}'}}}"},
        "-m recipe=evil quant=q0f16,q4f16_1", "Cannot convert 'DictConfig' to string",
    ),
    "a launcher that is another node": (
        {"recipes/evil.yaml": f"model: {{evil: {MAKE}}}\nhydra: {{launcher: '${{model.evil}}'}}"},
        "-m recipe=evil quant=q0f16,q4f16_1", "hydra.launcher: found ${model.evil}",
    ),
    "a log that is another node": (
        {"recipes/evil.yaml": "hydra: {job_logging: '${oc.create:{version: 1}}'}"},
        "-m recipe=evil quant=q0f16,q4f16_1",
        "hydra.job_logging: found ${oc.create:",
    ),
    "overrides that nobody typed": (
        {"recipes/evil.yaml": "hydra: {overrides: {hydra: ['hydra.searchpath=[pkg://canary]']}}",
         "canary/__init__.py": "import os; os.mkdir('ran')"},
        "-m recipe=evil quant=q0f16,q4f16_1", "hydra.overrides.hydra: found hydra.searchpath=[pkg://canary]",
    ),
    "a search path among a sweep's values": (
        {"recipes/evil.yaml": "hydra: {sweeper: {params: {hydra.searchpath: '[pkg://canary]'}}}",
         "canary/__init__.py": "import os; os.mkdir('ran')"},
        "-m recipe=evil quant=q0f16,q4f16_1", "hydra.sweeper.params.hydra.searchpath: found [pkg://canary]",
    ),
    "a search path that is another node": (
        {"conf/build.yaml": "hydra: {searchpath: ['${name}']}\nname: pkg://canary",
         "canary/__init__.py": "import os; os.mkdir('ran')"},
        "quant=q0f16", "hydra.searchpath: found ${name}",
    ),
    "all of hydra as another node": (
        {"conf/build.yaml": "hydra: '${oc.create:{searchpath: [pkg://canary]}}'",
         "canary/__init__.py": "import os; os.mkdir('ran')"},
        "quant=q0f16", "hydra is '${oc.create:",
    ),
    "folders elsewhere": (
        {"recipes/evil.yaml": "hydra: {sweep: {subdir: ../ran}}"}, "recipe=evil", "hydra.sweep.subdir: found ../ran"
    ),
    "a folder of a run elsewhere": (
        {"recipes/evil.yaml": "hydra: {run: {dir: /tmp/ran}}"}, "recipe=evil", "hydra.run.dir: found /tmp/ran"
    ),
    "a mode": ({"recipes/evil.yaml": "hydra: {mode: MULTIRUN}"}, "recipe=evil", "hydra.mode: found MULTIRUN"),
    "commands of a terminal": (
        {"recipes/evil.yaml": 'hydra: {help: {template: "a\\e]0;x"}}'}, "recipe=evil",
        "hydra.help.template: found 'a\\x1b]0;x'",
    ),
    "a secret of the environment": (
        {"recipes/evil.yaml": "name: x${oc.env:AWS_SECRET_ACCESS_KEY}"}, "recipe=evil",
        "${oc.env:AWS_SECRET_ACCESS_KEY}: found a variable that holds a secret",
    ),
    "lines for a scheduler": (
        {"recipes/evil.yaml": 'hydra: {launcher: {partition: "x\\nmkdir ran"}}'}, "-m recipe=evil quant=q0f16,q4f16_1",
        "hydra.launcher.partition: found x\\nmkdir ran",
    ),
    "a log that goes elsewhere": (
        {"recipes/evil.yaml": "hydra: {job_logging: {root: {x: 'ext://os.environ'}}}"}, "recipe=evil",
        "hydra.job_logging.root.x: found ext://os.environ",
    ),
}  # fmt: skip


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT / 'tools' / 'path'}:{folder}", "LLM_BUILD_STORE": str(folder / "store"),
        **variables,
    }  # fmt: skip
    command = [sys.executable, "-m", "llm_build", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CASES)
def test_nothing_that_a_file_names_is_run(case: str, tmp_path: Path) -> None:
    files, words, error = CASES[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = run(tmp_path, "plan", "verify=off", *words.split(), AWS_SECRET_ACCESS_KEY="s3cret")
    assert "s3cret" not in done.stderr
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert error in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_plugin_in_the_current_folder_is_not_looked_for(tmp_path: Path) -> None:
    """Hydra imports all of hydra_plugins that it finds, and `python -m` puts the current folder first."""
    (tmp_path / "hydra_plugins" / "evil").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "evil" / "__init__.py").write_text("import os; os.mkdir('ran')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "path"), "LLM_BUILD_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "llm_build", "plan", "-m", "quant=q0f16,q4f16_1", "verify=off"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_the_docs_use_stays_allowed(tmp_path: Path) -> None:
    words = ("plan", "-m", "verify=off", "quant=q0f16,q4f16_1", "hydra/job_logging=disabled", "hydra.sweep.dir=found")
    assert run(tmp_path, *words).returncode == 0
