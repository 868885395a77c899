"""A checkpoint's tokenizer as one tokenizer.json, the way transformers puts it together from up to six files.

transformers 5 (``PreTrainedTokenizerBase._from_pretrained``, ``TokenizersBackend.__init__``): tokens come from
tokenizer.json; then from ``added_tokens_decoder`` of tokenizer_config.json, else from added_tokens.json; then the named
special tokens of tokenizer_config.json, over which special_tokens_map.json goes where there is no
``added_tokens_decoder``. A token that the vocabulary has keeps its id, another one gets the next free id.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time
from typing import Any

from llm_build.core.errors import BuildError, UserError
from llm_build.core.fields import require
from llm_build.formats import tokenizer_process
from llm_build.formats.checkpoint import BPE_FILES, read_json

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_CONVERSION_SECONDS = 120
_PROBE_CHARACTERS, _PROBE_SECONDS = 2000, 0.2  # of processor time; others take a millisecond
_NEVER = ("padding", "truncation")  # settings of a training run; a text is neither padded nor cut here


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the vocabulary of the model, with the flags that tokenizer.json gives it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The JSON files of a tokenizer, {} where the checkpoint has none."""

    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    added_tokens: Mapping[str, Any] = field(default_factory=dict)
    special_tokens_map: Mapping[str, Any] = field(default_factory=dict)


def read_files(paths: Mapping[str, Path]) -> TokenizerFiles:
    """Raises UserError for a file that is not a JSON object, or a field of another type than it must have."""
    texts = [read_json(paths[name], name) if name in paths else {} for name in _JSON_FILES]
    files = TokenizerFiles(*texts)
    _check_tokenizer(files.tokenizer)
    list(_declared_tokens(files))
    named_tokens(files)
    return files


def assemble(paths: Mapping[str, Path]) -> tuple[bytes, list[str]]:
    """The bytes of one tokenizer.json without padding and truncation, and what the user should know of it.

    Args:
        paths: the checkpoint's small files by name; checkpoint.has_tokenizer of them is true.

    Raises:
        UserError: a file is damaged, or a field has another type than it must have.
    """
    files = read_files(paths)
    warnings: list[str] = []
    if "tokenizer.json" in paths:
        source, base = paths["tokenizer.json"].read_bytes(), dict(files.tokenizer)
    else:
        base, warnings = _from_vocabulary(paths)
        source = _dump(base)
    missing = _missing(files, base)
    if not missing and not any(base.get(key) for key in _NEVER):
        return source, warnings
    whole = {**base, **dict.fromkeys(_NEVER)}
    if missing:
        whole["added_tokens"] = _with_tokens(whole, missing)
    return _dump(whole), warnings


def named_tokens(files: TokenizerFiles) -> dict[str, str]:
    """{"eos_token": "</s>", ...}: the special tokens that have a name, which templates write."""
    sources = [("tokenizer_config.json", files.config)]
    if "added_tokens_decoder" not in files.config:
        sources.append(("special_tokens_map.json", files.special_tokens_map))
    names = {}
    for file, table in sources:
        for key, value in table.items():
            if key in _NAMED_TOKENS and value is not None:
                names[key] = _token(value, f"{file}: {key}", special=True).content
    return names


def _declared_tokens(files: TokenizerFiles) -> Iterator[AddedToken]:
    """Tokens that other files than tokenizer.json have, in the order in which transformers adds them."""
    decoder = files.config.get("added_tokens_decoder")
    where = "tokenizer_config.json: added_tokens_decoder"
    named = named_tokens(files)
    extra = [name.content for name in _extra_tokens(files)]
    if decoder is not None:
        require(isinstance(decoder, Mapping), where, decoder, "an object of ids and tokens")
        require(all(key.isdecimal() for key in decoder), where, sorted(decoder), "ids in decimal")
        for key, value in sorted(decoder.items(), key=lambda item: int(item[0])):
            yield _token(value, f"{where}.{key}", special=False)
    else:
        for content, id_ in files.added_tokens.items():
            require(_is_id(id_), f"added_tokens.json: {content!r}", id_, "a token id")
        special = {*named.values(), *extra}
        for content in sorted(files.added_tokens, key=files.added_tokens.__getitem__):
            yield AddedToken(content, normalized=content not in special, special=content in special)
    for content in (*named.values(), *extra):
        yield AddedToken(content, normalized=False, special=True)


def load(path: Path, name: str = "tokenizer.json") -> Any:
    """A tokenizers.Tokenizer, without padding and truncation. Raises UserError for a damaged file."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        raise damaged(error, f"{path} is not a {name}:") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Token ids of a text. ``special``: with what the tokenizer puts around every text.

    Raises:
        UserError: the tokenizer's patterns try so many ways to cut a text that it has no end, or its library gives up.
    """
    try:
        if len(text) > _PROBE_CHARACTERS:
            start = thread_time()
            tokenizer.encode(text[:_PROBE_CHARACTERS])
            if (seconds := thread_time() - start) > _PROBE_SECONDS:
                raise UserError(
                    f"tokenizer.json takes {seconds:.2g} s for {_PROBE_CHARACTERS} characters; allowed: up to "
                    f"{_PROBE_SECONDS:g} s, a hundred times what others take",
                    "look at the patterns of its pre_tokenizer and normalizer",
                )
        return list(tokenizer.encode(text, add_special_tokens=special).ids)
    except BaseException as error:
        raise damaged(error, "tokenizer.json cannot cut a text:") from error


def damaged(error: BaseException, what: str) -> BaseException:
    """What to raise for an error of tokenizers: a plain Exception, or the PanicException of its Rust, which is none."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError, BuildError)):
        return error
    return UserError(f"{what} {error}", "the file is damaged: fetch it again")


def _check_tokenizer(tokenizer: Mapping[str, Any]) -> None:
    """The fields of tokenizer.json that are read here."""
    added = tokenizer.get("added_tokens") or []
    require(isinstance(added, list), "tokenizer.json: added_tokens", added, "a list of tokens")
    for number, token in enumerate(added):
        where = f"tokenizer.json: added_tokens[{number}]"
        require(isinstance(token, Mapping) and _is_id(token.get("id")), where, token, "a token with an id")
        _token(token, where, special=False)
    model = tokenizer.get("model", {})
    require(isinstance(model, Mapping), "tokenizer.json: model", model, "an object")
    vocab = model.get("vocab", {})
    if isinstance(vocab, Mapping):
        wrong = next((word for word, id_ in vocab.items() if not _is_id(id_)), None)
        require(wrong is None, f"tokenizer.json: model.vocab.{wrong}", vocab.get(wrong), "a token id")
    else:
        right = isinstance(vocab, list) and all(isinstance(word, list) and word and _is_text(word[0]) for word in vocab)
        require(right, "tokenizer.json: model.vocab", vocab, "an object or a list of tokens")
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        _check_component(tokenizer.get(name), f"tokenizer.json: {name}")


def _check_component(node: Any, where: str) -> None:
    """A component, or a Sequence of them, whose members have a name for each kind."""
    if node is None:
        return
    require(isinstance(node, Mapping), where, node, "null or an object")
    require(_is_text(node.get("type")), f"{where}.type", node.get("type"), "the name of a component")
    for name in ("normalizers", "pretokenizers", "processors", "decoders"):
        members = node.get(name)
        require(members is None or isinstance(members, list), f"{where}.{name}", members, "a list of components")
        for number, member in enumerate(members or ()):
            _check_component(member, f"{where}.{name}[{number}]")
    if node["type"] == "TemplateProcessing":
        _check_template(node, where)


def _check_template(node: Mapping[str, Any], where: str) -> None:
    """What is put before and after a text: pieces of an order, and the ids of special ones."""
    pieces, tokens = node.get("single") or [], node.get("special_tokens") or {}
    require(isinstance(tokens, Mapping), f"{where}.special_tokens", tokens, "an object of tokens and their ids")
    require(isinstance(pieces, list), f"{where}.single", pieces, "a list of pieces")
    for number, piece in enumerate(pieces):
        at = f"{where}.single[{number}]"
        require(isinstance(piece, Mapping), at, piece, "an object with SpecialToken or Sequence")
        special = piece.get("SpecialToken")
        if special is None:
            continue
        require(isinstance(special, Mapping) and _is_text(special.get("id")), at, piece, "a SpecialToken with an id")
        token = tokens.get(special["id"])
        ids = token.get("ids") if isinstance(token, Mapping) else None
        at = f"{where}.special_tokens.{special['id']}.ids"
        require(isinstance(ids, list) and all(map(_is_id, ids)), at, ids, "a list of token ids")


def _extra_tokens(files: TokenizerFiles) -> list[AddedToken]:
    """Special tokens without one of the seven names."""
    found: list[AddedToken] = []
    sources = [("tokenizer_config.json", files.config)]
    if "added_tokens_decoder" not in files.config:
        sources.append(("special_tokens_map.json", files.special_tokens_map))
    for file, table in sources:
        for key in ("extra_special_tokens", "additional_special_tokens"):
            value = table.get(key) or []
            where = f"{file}: {key}"
            require(
                isinstance(value, (list, Mapping)), where, value, "a list of tokens, or an object of names and tokens"
            )
            tokens = value.values() if isinstance(value, Mapping) else value
            found += [_token(token, where, special=True) for token in tokens]
            if value:
                break  # the second is the older name of the first
        found += [
            _token(value, f"{file}: {key}", special=True)
            for key, value in table.items()
            if key.endswith("_token") and key not in _NAMED_TOKENS and isinstance(value, str) and value
        ]
    return found


def _token(value: Any, where: str, *, special: bool) -> AddedToken:
    """A token as the files write it: its text, or an object with flags."""
    if isinstance(value, str):
        return AddedToken(value, normalized=not special, special=special)
    allowed = "a string, or an object with content and flags"
    require(isinstance(value, Mapping) and isinstance(value.get("content"), str), where, value, allowed)
    flags = {key: value[key] for key in ("single_word", "lstrip", "rstrip", "normalized", "special") if key in value}
    wrong = next((key for key, flag in flags.items() if not isinstance(flag, bool)), "")
    require(not wrong, f"{where}.{wrong}", flags.get(wrong), "true or false")
    return AddedToken(value["content"], **{"special": special, **flags})


def _missing(files: TokenizerFiles, base: Mapping[str, Any]) -> list[AddedToken]:
    """Declared tokens that ``base`` does not have as special ones yet."""
    flags = [name for name in asdict(AddedToken("")) if name != "content"]
    have = {
        token["content"]: AddedToken(token["content"], **{flag: token[flag] for flag in flags if flag in token})
        for token in base.get("added_tokens") or []
    }
    missing: list[AddedToken] = []
    for token in _declared_tokens(files):
        known = have.get(token.content)
        by_name_alone = token == AddedToken(token.content, normalized=False, special=True)
        if token.content and known != token and not (known and known.special and by_name_alone):
            missing.append(token)
            have[token.content] = token
    return missing


def _with_tokens(base: Mapping[str, Any], tokens: list[AddedToken]) -> list[dict[str, Any]]:
    """``added_tokens`` after these were added; the ids are the library's."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(base))
        tokenizer.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in tokens])
        added: list[dict[str, Any]] = json.loads(tokenizer.to_str())["added_tokens"]
    except BaseException as error:
        raise damaged(error, "tokenizer.json:") from error
    return added


def _from_vocabulary(paths: Mapping[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """vocab.json and merges.txt by transformers' own conversion, in a process of its own: transformers imports torch
    where it can, which a worker that runs TVM must not."""
    with TemporaryDirectory(prefix="llm-build-") as name:
        folder = Path(name)
        for file, path in paths.items():
            (folder / file).symlink_to(path.absolute())
        command = [sys.executable, "-P", tokenizer_process.__file__, str(folder)]
        done = subprocess.run(command, capture_output=True, timeout=_CONVERSION_SECONDS, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout), []
    reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    warning = (
        f"transformers cannot convert vocab.json and merges.txt ({''.join(reason)}): read as GPT-2's byte-level BPE"
    )
    return _as_byte_level(paths), [warning]


def _as_byte_level(paths: Mapping[str, Path]) -> dict[str, Any]:
    """GPT-2's scheme: byte-level BPE with its split of words."""
    from tokenizers import ByteLevelBPETokenizer

    try:
        tokenizer = ByteLevelBPETokenizer(*(str(paths[name]) for name in BPE_FILES))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"vocab.json, merges.txt: {error}", "the files are damaged: fetch them again") from error
    whole: dict[str, Any] = json.loads(tokenizer.to_str())
    return whole


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
