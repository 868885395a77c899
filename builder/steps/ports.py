"""Input ports: a file or a group of files, as the step knows that it asked for."""

from __future__ import annotations

from collections.abc import Mapping

from llm_build.core.step_io import File


def one(file: File | Mapping[str, File]) -> File:
    assert isinstance(file, File), "a port with one file"
    return file


def group(files: File | Mapping[str, File]) -> Mapping[str, File]:
    assert not isinstance(files, File), "a port with a group of files"
    return files
