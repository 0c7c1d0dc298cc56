"""What launchers submit: unchanged user input, valid for its reader, and never executed here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.experiments import ROOT

from jaxbig.errors import Refused
from jaxbig.launch.common import Launcher, main
from jaxbig.launch.gke import Gke
from jaxbig.launch.local import Local
from jaxbig.launch.sky import Sky
from jaxbig.launch.slurm import Slurm
from jaxbig.launch.tpu_vm import TpuVm
from jaxbig.system.exit_codes import PEER_LOST

NASTY = [
    "a; touch pwned $(id)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"$(touch pwned)"',
    "$$(touch pwned) $HOME",
    "-x=\\",
]
OVERRIDES = [f"--initialize-from.run={each}" for each in NASTY]
GKE = ["--image", "example.org/jaxbig:1", "--claim", "runs"]
LAUNCHERS: dict[str, tuple[type[Launcher], list[str]]] = {
    "local": (Local, ["--processes", "2"]),
    "slurm": (Slurm, ["--nodes", "2", "--time", "4:00:00", "--partition", "main"]),
    "slurm in a container": (Slurm, ["--gpus", "8", "--container", "/images/jaxbig.sif"]),
    "gke tpu": (
        Gke,
        [
            *GKE,
            "--tpu",
            "v5p:4x4x8",
            "--slices",
            "2",
            "--spot",
            "--secrets",
            "API_KEY",
            "--secret",
            "keys",
        ],
    ),
    "gke gpu": (Gke, [*GKE, "--gpu", "nvidia-h100-80gb", "--nodes", "4"]),
    "tpu_vm": (
        TpuVm,
        [
            *(
                "--zone",
                "us-east5-a",
                "--type",
                "v5p-128",
                "--image",
                "v2-alpha-tpuv5",
                "--secrets",
                "API_KEY",
            ),
            *("--bucket", "my-runs", "--data", "my-data"),
        ],
    ),
    "sky": (
        Sky,
        [
            "--accelerators",
            "H100:8",
            "--nodes",
            "2",
            "--spot",
            "--bucket",
            "my-runs",
            "--secrets",
            "API_KEY",
        ],
    ),
}
RANKED = (
    'for argument in "$@"; do printf "%s\\0" "$argument"; done >>"$SAID"; '
    'printf "\\n\\0" >>"$SAID"\n'
)


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> tuple[type[Launcher], list[str]]:
    return LAUNCHERS[request.param]


@pytest.fixture
def rendered(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a launcher prints for its options and overrides, unchecked by default."""

    def render(
        kind: type[Launcher], options: list[str], overrides: list[str], unchecked: bool = True
    ) -> str:
        words = ["pytext_transformer", *options, *(["--unchecked"] if unchecked else [])]
        assert main(kind, "jaxbig.launch.x", [*words, "--", *overrides]) == 0
        said = capsys.readouterr()
        assert "add --submit" in said.err
        return said.out

    return render


def carried_out(script: str, folder: Path, *programs: str, **environment: str) -> list[list[str]]:
    """The arguments of each call, program first, of a script that sees only these programs."""
    (folder / "bin").mkdir()
    for name in programs:
        stub = f'#!/bin/bash\nset -- {name} "$@"\n{RANKED}'
        stub += '[ "$1" = srun ] || exit 0\nshift\nwhile [[ "$1" == --* ]]; do shift; done\n"$@"\n'
        (folder / "bin" / name).write_text(stub)
        (folder / "bin" / name).chmod(0o755)
    home = {
        "PATH": f"{folder}/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "SAID": f"{folder}/said",
        **environment,
    }
    subprocess.run(
        ["bash"], input=script, text=True, cwd=folder, env=home, check=False, capture_output=True
    )
    assert sorted(each.name for each in folder.iterdir() if each.name not in ("bin", "said")) == []
    calls = (folder / "said").read_text().split("\n\0")[:-1]
    return [call.split("\0")[:-1] for call in calls]


def test_what_slurm_runs_are_the_words_that_were_written(rendered: Any, tmp_path: Path) -> None:
    script = rendered(*LAUNCHERS["slurm"], OVERRIDES)
    calls = carried_out(script, tmp_path, "srun", "jaxbig", "scontrol", "touch", SLURM_JOB_ID="7")
    assert [call[0] for call in calls] == ["srun", "jaxbig"]  # and no touch
    assert calls[1] == ["jaxbig", "train", "pytext_transformer", *OVERRIDES]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (75, True)])
def test_slurm_job_is_queued_again_after_exit_75_alone(
    code: int, requeued: bool, rendered: Any, tmp_path: Path
) -> None:
    script = rendered(*LAUNCHERS["slurm"], OVERRIDES)
    for name, ends in (("srun", f"exit {code}"), ("scontrol", 'echo "$@" > queued')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{ends}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == code
    assert (tmp_path / "queued").exists() == requeued
    assert not requeued or (tmp_path / "queued").read_text() == "requeue 7\n"


def test_what_an_element_of_a_slurm_array_runs_are_the_words_that_were_written(
    tmp_path: Path,
) -> None:
    elements = ((3, (OVERRIDES[0], "--workdir", "a b")), (7, tuple(OVERRIDES[1:])))
    job = Slurm(experiment="my run.py", overrides=("--steps", "3"), elements=elements, at_once=2)
    assert "#SBATCH --array=3,7%2" in job.render()
    calls = carried_out(
        job.render(), tmp_path, "srun", "jaxbig", "touch", SLURM_JOB_ID="7", SLURM_ARRAY_TASK_ID="7"
    )
    assert calls[1:] == [["jaxbig", "train", "my run.py", "--steps", "3", *OVERRIDES[1:]]]


def test_sky_restores_the_links_that_a_bucket_does_not_hold(rendered: Any, tmp_path: Path) -> None:
    for folder in ("experiments", "launch", "jaxbig"):
        (tmp_path / folder).mkdir()
    [line] = [
        line
        for line in yaml.safe_load(rendered(*LAUNCHERS["sky"], []))["setup"].splitlines()
        if "ln -s" in line
    ]
    for _ in range(2):
        subprocess.run(["bash", "-euc", line], cwd=tmp_path, check=True)
        for name in ("experiments", "launch"):
            assert os.readlink(tmp_path / "jaxbig" / name) == f"../{name}"
            assert list((tmp_path / name).iterdir()) == []


def test_what_sky_runs_are_the_words_that_were_written(rendered: Any, tmp_path: Path) -> None:
    task = yaml.safe_load(rendered(*LAUNCHERS["sky"], OVERRIDES))
    variables = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    script = task["run"].replace(".venv/bin/", "")
    calls = carried_out(script, tmp_path, "jaxbig", "touch", **variables)
    run = [
        "--workdir",
        "/runs/pytext-transformer",
        "--coordinator",
        "10.0.0.1:1234",
        "--processes",
        "2",
        "--process",
        "1",
    ]
    assert calls == [["jaxbig", "train", "pytext_transformer", *OVERRIDES, *run]]


def test_what_a_tpu_vm_runs_are_the_words_that_were_written(rendered: Any, tmp_path: Path) -> None:
    options = [*LAUNCHERS["tpu_vm"][1], "--do", "run"]
    [[*call]] = carried_out(rendered(TpuVm, options, OVERRIDES), tmp_path, "gcloud", "touch")
    remote = call[call.index("--command") + 1]
    shutil.rmtree(tmp_path / "bin")
    (tmp_path / "said").unlink()
    remote = remote.replace("../.venv/bin/", "").replace("cd jaxbig && ", "")
    remote = remote.replace(" >../pytext-transformer", " >/dev/null #")
    remote = re.sub(r" >/dev/null #.*", ")", remote).replace("nohup ", "")
    calls = carried_out(remote, tmp_path, "jaxbig", "gcloud", "touch", "mountpoint")
    assert calls[:2] == [["mountpoint", "-q", "/mnt/runs"], ["mountpoint", "-q", "/mnt/data"]]
    assert calls[2][:3] == ["gcloud", "secrets", "versions"]
    run = ["--workdir", "/mnt/runs/pytext-transformer", "--coordinator", "auto"]
    assert calls[3:] == [["jaxbig", "train", "pytext_transformer", *OVERRIDES, *run]]


def expanded(text: str, variables: dict[str, str]) -> str:
    """Expands a command as Kubernetes does: $(NAME) is a value, or itself if unknown; $$ is $."""
    return re.sub(
        r"\$(\$|\((.*?)\))",
        lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]),
        text,
    )


@pytest.mark.parametrize("name", ["gke tpu", "gke gpu"])
def test_what_a_pod_runs_are_the_words_that_were_written(name: str, rendered: Any) -> None:
    overrides = [*OVERRIDES, "--initialize-from.run=$(API_KEY)"]
    manifest = yaml.safe_load(rendered(*LAUNCHERS[name], overrides))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    command = job["template"]["spec"]["containers"][0]["command"]
    seen = [expanded(word, {"API_KEY": "canary", "JOB_COMPLETION_INDEX": "3"}) for word in command]
    assert seen[: len(overrides) + 3] == ["jaxbig", "train", "pytext_transformer", *overrides]
    assert seen[-1] == ("auto" if name == "gke tpu" else "3")


def test_what_local_starts_are_the_words_that_were_written(rendered: Any) -> None:
    lines = [shlex.split(line) for line in rendered(*LAUNCHERS["local"], OVERRIDES).splitlines()]
    assert [line[0] for line in lines] == ["JAX_NUM_CPU_DEVICES=1"] * 2
    for number, line in enumerate(lines):
        assert line[1:6] == [sys.executable, "-m", "jaxbig", "train", "pytext_transformer"]
        assert line[6:-6] == OVERRIDES and line[-4:] == [
            "--processes",
            "2",
            "--process",
            str(number),
        ]


@pytest.mark.parametrize(
    "name", ["../../x", "A", "a b", "a;b", "-a", "a-", "a" * 41, "$(id)", "a\nb", "ä"]
)
def test_a_name_that_is_not_safe_everywhere_is_refused(
    name: str, launcher: tuple[type[Launcher], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    kind, options = launcher
    assert (
        main(
            kind,
            "jaxbig.launch.x",
            ["pytext_transformer", *options, f"--name={name}", "--unchecked"],
        )
        == 2
    )
    said = capsys.readouterr()
    assert said.out == "" and "--name" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("slurm", "--partition", "main\n#SBATCH --wrap=x"),
        ("slurm", "--time", "1; id"),
        ("slurm", "--account", "$(id)"),
        ("slurm in a container", "--container", "--help"),
        ("gke tpu", "--image", "a b"),
        ("gke tpu", "--tpu", "v5p:3x1x2"),
        ("gke tpu", "--tpu", "v9:2x2"),
        ("gke tpu", "--claim", "../x"),
        ("tpu_vm", "--zone", "--project=other"),
        ("tpu_vm", "--secrets", "A=$(id)"),
        ("tpu_vm", "--bucket", "gs://x"),
        ("tpu_vm", "--data", "$(id)"),
        ("gke gpu", "--data", "../x"),
        ("sky", "--data", "s3://$(id)"),
        ("slurm", "--data", "/a b"),
        ("sky", "--bucket", "s3://x"),
        ("sky", "--accelerators", "H100:8 # "),
    ],
)
def test_what_would_be_read_as_more_than_a_word_is_refused(
    name: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, options = LAUNCHERS[name]
    options = [word for word in options if word != option]
    assert (
        main(
            kind,
            "jaxbig.launch.x",
            ["pytext_transformer", *options, f"{option}={value}", "--unchecked"],
        )
        == 2
    )
    assert capsys.readouterr().out == ""


def test_what_cannot_be_printed_is_refused(
    launcher: tuple[type[Launcher], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for override in ("--a=\n#SBATCH --x", "--a=\x1b[2J", "--a=\0"):
        assert (
            main(
                launcher[0],
                "jaxbig.launch.x",
                ["pytext_transformer", *launcher[1], "--unchecked", "--", override],
            )
            == 2
        )
        assert capsys.readouterr().out == ""


def test_overrides_are_read_before_anything_is_submitted(
    launcher: tuple[type[Launcher], list[str]], rendered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, options = launcher
    assert "a; touch pwned $(id)" in rendered(
        kind, options, OVERRIDES[:1], unchecked=False
    ).replace("$$", "$")
    assert (
        main(
            kind, "jaxbig.launch.x", ["pytext_transformer", *options, "--submit", "--", "--stesp=3"]
        )
        == 2
    )
    assert "--steps" in capsys.readouterr().err
    assert main(kind, "jaxbig.launch.x", ["pytext_transfromer", *options, "--submit"]) == 2
    assert "pytext_transformer" in capsys.readouterr().err


def test_secrets_go_nowhere_and_no_cloud_library_is_needed(tmp_path: Path) -> None:
    """Their values are in no output, and what is imported to print is jaxbig's own."""
    code = "import json, sys; from test_launchers import LAUNCHERS, main\n"
    code += "for kind, options in LAUNCHERS.values():\n"
    code += "    assert not main(kind, 'x', ['a', *options, '--unchecked'])\n"
    code += "names = 'sky google kubernetes boto3 wandb'.split()\n"
    code += "print(json.dumps([name for name in names if name in sys.modules]))"
    secret = {"API_KEY": "canary-in-the-mine", "WANDB_API_KEY": "canary-in-the-mine"}
    paths = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/launch")])
    }
    words = [sys.executable, "-c", code]
    environment = {**os.environ, **secret, **paths}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "canary" not in done.stdout + done.stderr and done.stdout.count("API_KEY") > 3
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="apt-get install shellcheck")
def test_a_slurm_script_is_clean_to_shellcheck(rendered: Any) -> None:
    elements = ((0, ("--seed", "0")), (1, tuple(OVERRIDES)))
    scripts = [
        rendered(*LAUNCHERS[name], more)
        for name in LAUNCHERS
        if "slurm" in name
        for more in ([], OVERRIDES)
    ]
    scripts += [
        Slurm(experiment="a", elements=elements).render(),
        Slurm(experiment="a", no_requeue=True).render(),
    ]
    task = yaml.safe_load(rendered(*LAUNCHERS["sky"], ["--steps", "3"]))
    for script in [*scripts, f"#!/bin/bash\n{task['setup']}", f"#!/bin/bash\n{task['run']}"]:
        done = subprocess.run(
            ["shellcheck", "-"], input=script, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


NAMED = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
# The part of JobSet's v1alpha2 definition that is used here, written from its API reference; the
# jobs in it are checked by Kubernetes' own schemas.
JOBSET = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": NAMED,
                "namespace": NAMED,
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "rules": {
                            "type": "array",
                            "maxItems": 20,
                            "items": {
                                "type": "object",
                                "required": ["action", "name"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": {
                                        "type": "string",
                                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                                    },
                                    "action": {
                                        "enum": [
                                            "FailJobSet",
                                            "RestartJobSet",
                                            "RestartJobSetAndIgnoreMaxRestarts",
                                        ]
                                    },
                                    "onJobFailureReasons": {
                                        "type": "array",
                                        "items": {
                                            "enum": [
                                                "BackoffLimitExceeded",
                                                "DeadlineExceeded",
                                                "FailedIndexes",
                                                "MaxFailedIndexesExceeded",
                                                "PodFailurePolicy",
                                            ]
                                        },
                                    },
                                    "targetReplicatedJobs": {
                                        "type": "array",
                                        "items": {"type": "string"},
                                    },
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "name": NAMED,
                            "replicas": {"type": "integer", "minimum": 0},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize("name", ["gke tpu", "gke gpu"])
def test_a_jobset_is_one_to_kubernetes(name: str, rendered: Any) -> None:
    manifest = yaml.safe_load(rendered(*LAUNCHERS[name], OVERRIDES))
    jsonschema.validate(manifest, JOBSET)
    for replicated in manifest["spec"]["replicatedJobs"]:
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "x"},
            **replicated["template"],
        }
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        pod = replicated["template"]["spec"]["template"]["spec"]
        # what Kubernetes demands beyond its schema, of a policy for failed pods
        assert pod["restartPolicy"] == "Never" and pod["containers"][0]["name"] == "jaxbig"
    broken = yaml.safe_load(rendered(*LAUNCHERS[name], []))
    broken["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0][
        "comand"
    ] = []
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    with pytest.raises(kubernetes_validate.ValidationError):  # this reading would notice
        template = broken["spec"]["replicatedJobs"][0]["template"]
        kubernetes_validate.validate(
            {**job, **template}, kubernetes_validate.latest_version(), strict=True
        )


@pytest.mark.parametrize(
    ("tpu", "pods", "chips"),
    [("v5p:4x4x8", 32, 4), ("v6e:16x16", 64, 4), ("v5e:1x1", 1, 1), ("v4:2x2x1", 1, 4)],
)
def test_a_slice_has_as_many_pods_as_machines(tpu: str, pods: int, chips: int) -> None:
    job = Gke(experiment="a", image="a", claim="a", tpu=tpu, slices=3)
    job.check()
    [replicated] = job.manifest()["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 3 and replicated["template"]["spec"]["completions"] == pods
    container = replicated["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_a_tpu_vm_is_created_used_and_deleted_by_gcloud() -> None:
    options: dict[str, Any] = {
        "experiment": "a",
        "zone": "z-a",
        "type": "v6e-16",
        "image": "v2-alpha-tpuv6e",
    }
    one = TpuVm(**options, spot=True, do=("create", "install", "run", "follow", "stop", "delete"))
    actions = [command[3:5] for command in one.commands()]
    ssh = ["tpu-vm", "ssh"]
    by_itself = [["tpu-vm", "create"], ["tpu-vm", "scp"]]
    assert actions == [*by_itself, *[ssh] * 4, ["tpu-vm", "delete"]]
    assert "--spot" in one.create()[0] and all(
        command[-2:] == ["--zone", "z-a"] for command in one.commands()
    )
    many = TpuVm(**options, slices=2, project="p")
    [create] = many.create()
    assert create[3:6] == ["queued-resources", "create", "a"] and create[6:10] == [
        "--node-count",
        "2",
        "--node-prefix",
        "a",
    ]
    assert [command[5] for command in many.run()] == ["a-0", "a-1"]
    [delete] = many.delete()
    assert delete[:6] == ["gcloud", "compute", "tpus", "queued-resources", "delete", "a"]
    assert delete[6:] == ["--force", "--quiet", "--zone", "z-a", "--project", "p"]


STATES = {"queued": ["ACCEPTED", "PROVISIONING", "ACTIVE"], "not queued": ["CREATING", "READY"]}


@pytest.mark.parametrize(("last", "code"), [("", 0), ("FAILED", 1), ("SUSPENDED", 1)])
@pytest.mark.parametrize("kind", STATES)
def test_tpu_vm_waits_for_its_machines_before_it_installs(
    kind: str, last: str, code: int, tmp_path: Path
) -> None:
    options = {
        "experiment": "a",
        "zone": "z-a",
        "type": "v6e-16",
        "image": "i",
        "queued": kind == "queued",
    }
    job = TpuVm(**options)  # type: ignore[arg-type]
    assert job.do[:3] == ("create", "wait", "install")
    states = [*STATES[kind][:-1], last or STATES[kind][-1], "ACTIVE", "READY"]
    (tmp_path / "states").write_text("\n".join(states))
    (tmp_path / "gcloud").write_text("#!/bin/bash\nhead -n 1 states\nsed -i 1d states\n")
    (tmp_path / "sleep").write_text("#!/bin/bash\n")
    for name in ("gcloud", "sleep"):
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    [command] = job.wait()
    done = subprocess.run(
        command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=20, check=False
    )
    reported = states[: len(STATES[kind])]
    assert (done.returncode, done.stdout.split()) == (
        code,
        [word for each in reported for word in ("a:", each)],
    )


@pytest.mark.parametrize("overrides", [(), ("--steps=3",)])
def test_tpu_vm_without_a_folder_that_all_machines_see_is_refused(
    overrides: tuple[str, ...],
) -> None:
    options: dict[str, Any] = {
        "experiment": "a",
        "zone": "z-a",
        "type": "v6e-16",
        "image": "i",
        "queued": True,
    }
    with pytest.raises(Refused, match="all machines must see one folder of the run"):
        TpuVm(**options, spot=True, overrides=overrides).check()
    TpuVm(**options, overrides=(*overrides, "--workdir=/mnt/nfs/a")).check()
    TpuVm(**options, bucket="my-runs").check()
    TpuVm(**options, do=("create", "wait", "delete")).check()


SEEN = {  # what a process finds in its environment, by launcher: where --data is, where caches are
    "gke tpu": ("tfds", "/data", "/runs/.jaxbig-cache"),
    "gke gpu": ("tfds", "/data", "/runs/.jaxbig-cache"),
    "sky": ("gs://my-data", "/data", "/runs/.jaxbig-cache"),
    "tpu_vm": ("my-data", "/mnt/data", "/mnt/runs/.jaxbig-cache"),
    "tpu_vm with a disk": ("/mnt/nfs/tfds", "/mnt/nfs/tfds", "/mnt/nfs/runs/.jaxbig-cache"),
    "slurm": ("/shared/tfds", "/shared/tfds", "runs/.jaxbig-cache"),
    "slurm with a folder": ("/shared/tfds", "/shared/tfds", "/scratch/.jaxbig-cache"),
}
WHERE = {
    "tpu_vm with a disk": ["--workdir=/mnt/nfs/runs/a"],
    "slurm with a folder": ["--workdir", "/scratch/a"],
}


@pytest.mark.parametrize("name", SEEN)
def test_data_are_mounted_and_named_and_caches_lie_beside_the_run(name: str, rendered: Any) -> None:
    data, tfds, cache = SEEN[name]
    kind, options = LAUNCHERS[name.split(" with")[0]]
    options = options[: options.index("--bucket")] if name == "tpu_vm with a disk" else options
    text = rendered(kind, [*options, f"--data={data}"], WHERE.get(name, []))
    wanted = {"TFDS_DATA_DIR": tfds, "JAXBIG_CACHE": cache}
    if name.startswith("gke"):
        spec = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
            "spec"
        ]
        [container] = spec["containers"]
        assert {
            each["name"]: each.get("value") for each in container["env"]
        }.items() >= wanted.items()
        claims = {
            each["name"]: each.get("persistentVolumeClaim", {}).get("claimName")
            for each in spec["volumes"]
        }
        mounted = {each["mountPath"]: claims[each["name"]] for each in container["volumeMounts"]}
        assert mounted.items() >= {"/runs": "runs", "/data": data}.items()
        assert ("/dev/shm" in mounted) == (name == "gke gpu")
    elif name == "sky":
        task = yaml.safe_load(text)
        assert task["envs"] == wanted
        assert task["file_mounts"]["/data"] == {"source": data, "mode": "MOUNT"}
    else:
        exported = dict(re.findall(r"export (TFDS_DATA_DIR|JAXBIG_CACHE)=(\S+)", text))
        assert exported == wanted


def test_without_data_nothing_but_the_caches_is_named(rendered: Any) -> None:
    for name in ("gke gpu", "sky"):
        assert (
            "TFDS_DATA_DIR" not in (text := rendered(*LAUNCHERS[name], []))
            and "/runs/.jaxbig-cache" in text
        )
    assert "export" not in rendered(*LAUNCHERS["slurm"], [])


def examples(module: str) -> list[list[str]]:
    """The commands of a launcher's docstring that are whole, as words."""
    text = (sys.modules[module].__doc__ or "").replace("\\\n", " ")
    lines = [
        re.sub(r" > \S+$", "", line.strip()) for line in text.split("\n") if "python -m" in line
    ]
    return [shlex.split(line)[2:] for line in lines if "..." not in line]


@pytest.mark.parametrize("kind", [Local, Slurm, Gke, TpuVm, Sky], ids=lambda kind: kind.__name__)
def test_examples_in_docstrings_are_accepted_as_they_stand(
    kind: type[Launcher], capsys: pytest.CaptureFixture[str]
) -> None:
    found = examples(kind.__module__)
    assert found
    for module, *words in found:
        assert module == kind.__module__
        assert main(kind, module, [word for word in words if word != "--submit"]) == 0, (
            capsys.readouterr().err
        )
        text = capsys.readouterr().out
        if words[0].startswith("c4_"):  # its data set must be there already
            assert "TFDS_DATA_DIR" in text


def test_launchers_in_the_documentation_are_accepted_as_they_stand() -> None:
    text = (ROOT / "docs" / "launch.md").read_text()
    found = [
        shlex.split(line)[2:]
        for line in re.findall(r"`(python -m jaxbig\.launch\.\w+ [^`]*)`", text)
    ]
    assert {module for module, *_ in found} == {
        f"jaxbig.launch.{each}" for each in ("local", "slurm", "gke", "tpu_vm", "sky")
    }
    for module, *words in found:
        kind = {"Local": Local, "Slurm": Slurm, "Gke": Gke, "TpuVm": TpuVm, "Sky": Sky}[
            module.removeprefix("jaxbig.launch.").title().replace("_", "")
        ]
        words = [
            {"NAME": "digits_convnet", "IMAGE": "image", "ZONE": "zone"}.get(word, word)
            for word in words
        ]
        assert main(kind, module, words) == 0


@pytest.mark.parametrize(
    ("options", "variables", "cpus"),
    [
        (["--gpus=8"], {"SLURM_CPUS_ON_NODE": "96"}, "12"),
        (["--gpus=8"], {"SLURM_CPUS_ON_NODE": "4"}, "1"),
        (["--gpus=2", "--cpus=5"], {"SLURM_CPUS_ON_NODE": "96"}, "5"),
        ([], {"SLURM_CPUS_ON_NODE": "32"}, "32"),
        ([], {}, "1"),
    ],
)
def test_cores_reach_the_processes_of_slurm(
    options: list[str], variables: dict[str, str], cpus: str, rendered: Any, tmp_path: Path
) -> None:
    script = rendered(Slurm, options, [])
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    done = subprocess.run(
        ["bash"], input=script, text=True, env=environment, capture_output=True, check=False
    )
    assert f"--cpus-per-task={cpus}" in done.stdout.split("\n"), done.stderr


def rule_of(policy: list[dict[str, Any]], code: int, disrupted: bool) -> str:
    """Kubernetes' action for a failed pod: that of the first matching rule (Job API reference)."""
    for rule in policy:
        if disrupted and {"type": "DisruptionTarget", "status": "True"} in rule.get(
            "onPodConditions", []
        ):
            return rule["action"]
        if code in rule.get("onExitCodes", {}).get("values", []):
            return rule["action"]
    return "Count"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        *(
            (75, False, "FailJob"),
            (137, True, "FailJob"),
            (69, True, "FailJob"),
            (69, False, "Ignore"),
        ),
        *((1, False, "Count"), (2, False, "Count"), (130, False, "Count"), (137, False, "Count")),
    ],
)
def test_a_pod_that_follows_a_lost_one_is_no_failure(
    code: int, disrupted: bool, action: str
) -> None:
    """FailJob: preempted, and JobSet restarts without counting; Count: a failure of its own."""
    manifest = Gke(experiment="a", image="a", claim="a", gpu="h", nodes=4).manifest()
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert rule_of(job["podFailurePolicy"]["rules"], code, disrupted) == action and PEER_LOST == 69


@pytest.mark.parametrize(
    ("spot", "leave", "grace"),
    [(False, 0, 120), (False, 600, 600), (True, 0, 15), (True, 15, 15), (True, 16, None)],
)
def test_a_pod_on_a_spot_machine_is_promised_no_more_than_gke_gives(
    spot: bool, leave: int, grace: int | None
) -> None:
    job = Gke(experiment="a", image="a", claim="a", gpu="h", spot=spot, leave=leave)
    if grace is None:
        with pytest.raises(Refused, match="--leave 16 with --spot: GKE gives a pod 15 s"):
            job.check()
    else:
        job.check()
        assert job.pod()["terminationGracePeriodSeconds"] == grace


def test_sky_reads_its_task(rendered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky", reason="pip install 'jaxbig[sky]'")
    text = rendered(*LAUNCHERS["sky"], OVERRIDES)
    task = sky.Task.from_yaml_config(yaml.safe_load(text), secrets_overrides=[("API_KEY", "x")])
    assert (
        task.name == "pytext-transformer"
        and task.num_nodes == 2
        and task.run == yaml.safe_load(text)["run"]
    )
    [resources] = task.resources
    assert resources.accelerators == {"H100": 8} and resources.use_spot
    with pytest.raises(ValueError, match="unknown_field"):
        sky.Task.from_yaml_config(yaml.safe_load(text) | {"unknown_field": 1})


@pytest.mark.parametrize(
    ("name", "program"),
    [("slurm", "sbatch"), ("gke gpu", "kubectl"), ("tpu_vm", "gcloud"), ("sky", "sky")],
)
def test_what_is_submitted_is_what_was_printed(
    name: str,
    program: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    kind, options = LAUNCHERS[name]
    takes = {"sbatch": "cat", "kubectl": "cat", "gcloud": "true", "sky": 'cat "${@: -1}"'}[program]
    (tmp_path / program).write_text(
        f'#!/bin/bash\n{{ echo "{program} $*"; {takes}; }} >>{tmp_path}/got\n'
    )
    (tmp_path / program).chmod(0o755)
    options = [
        *options,
        *(["--do", "create", "install", "run"] if name == "tpu_vm" else []),
    ]  # wait has its own test
    words = ["pytext_transformer", *options, "--unchecked", "--submit", "--", *OVERRIDES]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("API_KEY", "canary")
    assert main(kind, "jaxbig.launch.x", words) == 0
    printed = capfd.readouterr().out.strip()
    got = (tmp_path / "got").read_text()
    assert "canary" not in got
    if name == "tpu_vm":
        assert got.splitlines() == [" ".join(shlex.split(line)) for line in printed.splitlines()]
    else:
        assert got.split("\n", 1)[1].strip() == printed
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert main(kind, "jaxbig.launch.x", words) == 1
    assert f"no {program} here" in capfd.readouterr().err
