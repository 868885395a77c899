"""The jobs of a batch, composed: by Hydra once for every choice of every group, the rest put together from that.

Hydra takes 80 ms to compose a job. Where each choice writes below its own group alone, a section of a job follows from
the choice made in its group and the overrides of its keys, so 3 models x 4 quants x 3 targets need 8 compositions, not
36. Whether that holds is read from the files and from what Hydra composed of them (``_Separable``); a job for which it
is not certain goes through Hydra. tests/planning/test_batch.py compares both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from llm_build.config.choices import CHOICE, GROUPS, SECTIONS, Composed
from llm_build.config.from_hydra import to_plain

_SETTING = re.compile(rf"^(?:\+\+?|~)?(?P<section>{'|'.join(SECTIONS)})\.[\w.-]+(?:=|$)|^name=")
_ABSENT = object()

Load = Callable[[Sequence[str]], Any]  # a job's overrides -> its DictConfig, by Hydra
_SectionKey = tuple[str, ...]  # what a section follows from


class JobOverrides(NamedTuple):
    """A job whose overrides are choices of our groups and settings of single keys, and nothing else."""

    choices: Mapping[str, str]  # as "quant=q4f16_1", by group
    settings: Mapping[str, tuple[str, ...]]  # as "++quant.method=mse", by section

    def section_key(self, section: str) -> _SectionKey:
        """A recipe may write anywhere, so it decides every section."""
        made = (self.choices.get("recipe", ""), self.choices.get(section, "") if section in GROUPS else "")
        return (section, *made, *self.settings.get(section, ()))


def parse_overrides(overrides: Iterable[str]) -> JobOverrides | None:
    """None for a job with other overrides: packages, additions, deletions of groups, interpolations."""
    choices: dict[str, str] = {}
    settings: dict[str, tuple[str, ...]] = {}
    for text in overrides:
        if choice := CHOICE.match(text):
            if choice["group"] in choices:
                return None
            choices[choice["group"]] = text
            continue
        setting = _SETTING.match(text)
        if setting is None or "${" in text:
            return None
        section = setting["section"] or "name"
        settings[section] = (*settings.get(section, ()), text)
    return JobOverrides(choices, settings)


def compose_jobs(jobs: Sequence[Sequence[str]], load: Load, repository: Any, primary: str = "build") -> list[Composed]:
    """``repository``: Hydra's, which holds the files that ``load`` reads. Raises what Hydra and ``to_plain`` raise."""
    sections = _SectionCache(_Separable(repository, primary))
    composed = []
    for overrides in jobs:
        parsed = parse_overrides(overrides)
        job = sections.assemble(parsed) if parsed else None
        if job is None:
            config = load(overrides)
            pure = parsed is not None and not _interpolates(config)
            job = to_plain(config, overrides)
            if parsed and pure:
                sections.keep(parsed, job)
        composed.append(replace(job, overrides=tuple(overrides)))
    return composed


class _SectionCache:
    """Sections of composed jobs, by what decided each."""

    def __init__(self, separable: _Separable) -> None:
        self._separable = separable
        self._values: dict[_SectionKey, Any] = {}
        self._choices: dict[_SectionKey, str] = {}
        self._names: tuple[str, ...] = ()
        self._sweeps = False

    def keep(self, parsed: JobOverrides, job: Composed) -> None:
        """Keep the sections of a job, if they are independent of each other."""
        if not self._separable.allows(job.choices):
            return
        self._names = tuple(dict.fromkeys((*self._names, *job.values, *SECTIONS, "name")))
        for name in self._names:
            self._values.setdefault(parsed.section_key(name), job.values.get(name, _ABSENT))
        for group in GROUPS:
            self._choices.setdefault(parsed.section_key(group)[:3], job.choices.get(group, ""))
        self._sweeps = job.sweeps

    def assemble(self, parsed: JobOverrides) -> Composed | None:
        """The job, when every section of it is known."""
        keys = {name: parsed.section_key(name) for name in self._names}
        if not keys or not all(key in self._values for key in keys.values()):
            return None
        values = {name: self._values[key] for name, key in keys.items() if self._values[key] is not _ABSENT}
        chosen = {group: self._choices[parsed.section_key(group)[:3]] for group in GROUPS}
        return Composed(values, {g: c for g, c in chosen.items() if c}, (), self._sweeps)


class _Separable:
    """Whether choices depend on nothing but themselves: what their files, the primary configuration and the recipe say
    in their defaults lists. Anything unusual there is a no."""

    def __init__(self, repository: Any, primary: str) -> None:
        self._load = cache(repository.load_config)
        self._known: dict[str, bool] = {}
        self._primary = self._is_plain(primary)

    def allows(self, choices: Mapping[str, str]) -> bool:
        recipe = choices.get("recipe")
        return (
            self._primary
            and (recipe is None or self._is_plain(f"recipe/{recipe}"))
            and all(self._is_local(g, c) for g, c in choices.items() if g != "recipe")
        )

    def _is_plain(self, path: str) -> bool:
        """A file over the whole configuration: it picks choices of our groups, each for the place of its name."""
        if path not in self._known:
            self._known[path] = all(map(_is_plain_default, self._defaults(path)))
        return self._known[path]

    def _is_local(self, group: str, choice: str) -> bool:
        """A choice that writes where its group is, and includes other choices of that alone."""
        path = f"{group}/{choice}"
        if path not in self._known:
            loaded = self._load(path)
            self._known[path] = (
                loaded is not None
                and not loaded.header.get("package")
                and all(
                    each.is_self() or (_is_beside(each) and self._is_local(group, each.path))
                    for each in self._defaults(path)
                )
            )  # fmt: skip
        return self._known[path]

    def _defaults(self, path: str) -> list[Any]:
        loaded = self._load(path)
        return list(loaded.defaults_list or ()) if loaded else []


def _is_plain_default(default: Any) -> bool:
    """``- quant: x``, ``- override /quant: x``, ``- override hydra/launcher: x``: no packages, no interpolation."""
    from hydra.core.default_element import GroupDefault

    if default.is_self():
        return True
    if not isinstance(default, GroupDefault) or default.package or "${" in f"{default.group}{default.value}":
        return False
    group = str(default.group).removeprefix("/")
    return group in GROUPS or group.startswith("hydra/")


def _is_beside(default: Any) -> bool:
    """``- other``, a choice of the same group."""
    from hydra.core.default_element import ConfigDefault

    plain = isinstance(default, ConfigDefault) and not default.package
    return plain and re.fullmatch(r"[\w.-]+", str(default.path)) is not None


def _interpolates(config: Any) -> bool:
    """Whether any value outside of Hydra's own is taken from another."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(config, resolve=False)
    return any("${" in text for name, value in values.items() if name != "hydra" for text in _texts_in(value))


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(each)
