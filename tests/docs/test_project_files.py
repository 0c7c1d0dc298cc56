"""The files of a repository besides code: license, citation, changelog, hooks, workflow."""

import os
import re
import tomllib
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from pre_commit.clientlib import load_config
from support.experiments import ROOT

import jaxbig

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file. Its key `on`, a boolean to YAML 1.1, is a string again."""
    found = yaml.safe_load((ROOT / path).read_text())
    return {"on" if key is True else key: value for key, value in found.items()}


def test_license_is_the_one_that_the_package_names() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 The jaxbig authors" in text and "[yyyy]" not in text


def test_citation_is_valid_and_has_the_version_and_the_license() -> None:
    citation = read_yaml("CITATION.cff")
    jsonschema.validate(citation, get_builtin_schema("vendor.citation-file-format"))
    assert citation["version"] == jaxbig.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]


def test_version_is_written_once() -> None:
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]


def test_workflow_is_valid_and_runs_what_ci_runs() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    jsonschema.validate(workflow, get_builtin_schema("vendor.github-workflows"))
    assert [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_schema_refuses_a_workflow_without_a_machine() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    del workflow["jobs"]["ci"]["runs-on"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(workflow, get_builtin_schema("vendor.github-workflows"))


def test_hooks_are_valid_and_need_no_network() -> None:
    load_config(str(ROOT / ".pre-commit-config.yaml"))
    repos = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["language"] for hook in repos[0]["hooks"]} == {"system"}


def test_changelog_begins_with_the_unreleased_version_and_knows_its_kinds_of_changes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
