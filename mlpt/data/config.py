"""What to prepare and how: the settings of data, and what becomes of them where the text is prepared already."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlpt.data.corpora import Documents
from mlpt.data.manifest import Manifest, read_manifest
from mlpt.data.tokenizers import TRAINED, load_tokenizer, vocabulary_hash
from mlpt.errors import UserError
from mlpt.settings import Settings, load_settings, merge

OF_TRAINED: dict[str, Any] = {"vocab_size": 8192, "lowercase": True, "tokenizer_bytes": 32 << 20}  # with defaults


OF_RUN = ("source", "sources", "mix", "max_repeats", "workers", "max_unknown")  # what a prepared folder does not say
RESERVED = ("all", "texts")  # names of sources that are no domains


def unfit_for_a_domain(name: str) -> str | None:
    """Why a run that tells domains apart can't have one of that name; None if it can."""
    if name not in RESERVED and re.fullmatch(r"[\w.-]+", name) is not None:
        return None
    return f"{name!r} can't name a domain: take letters, digits, '_', '-' and '.', and not {' or '.join(RESERVED)}"


class DataConfig(Settings):
    """What to prepare, and how."""

    source: str | list[str] | None = Field(
        default="docs", description="files, folders, globs, URIs, 'docs' or 'hub:NAME[:config]'"
    )
    sources: dict[str, str | list[str]] | None = Field(
        default=None,
        description="instead of source: {legal: SOURCE, code: SOURCE, ...}, each text a domain of that name",
    )
    mix: Literal["proportional", "uniform", "characters", "learned"] | dict[str, float] | None = Field(
        default=None,
        description="of domains: 'proportional' to their text, 'uniform', {legal: 0.3, ...}, or 'learned' by the rule "
        "of the mixture; 'characters': rows drawn by the characters in them, with replacement, as MetaLMO draws its "
        "windows; null: all text is one",
    )
    documents: Documents = Field(
        default="auto",
        description="of text files: 'files' (one a file), 'lines', 'blank' (between blank lines); 'auto' finds it out",
    )
    tokenizer: str = Field(
        default="wordpiece",
        description="'wordpiece', 'bpe' or 'task_bpe' (MetaLMO's) to train one; or a folder, file or hub name",
    )
    vocab_size: int | None = Field(default=None, gt=0, lt=2**31, description="of a trained tokenizer; default 8192")
    lowercase: bool | None = Field(default=None, description="of a trained WordPiece; default true")
    tokenizer_bytes: int | None = Field(
        default=None, gt=0, description="text that a tokenizer is trained on, spread over the input; default 32 MiB"
    )
    max_unknown: float = Field(
        default=0.1, ge=0, le=1, description="share of unknown tokens above which the tokenizer doesn't fit the text"
    )
    block_size: int = Field(default=128, ge=4, le=65535, description="tokens a block, special ones included")
    packing: Literal["full", "document", "windows", "kd"] = Field(
        default="full",
        description="no padding; one block a document; whole documents in blocks of their own; or paragraph pairs as "
        "TAMT-KD makes them",
    )
    dev_share: float = Field(
        default=0.05, ge=0, lt=1, description="of the documents, where no file is named dev (or valid)"
    )
    test_share: float = Field(default=0.05, ge=0, lt=1, description="of the documents, where no file is named test")
    max_repeats: float | None = Field(
        default=None, gt=0, description="how often training may go through the text of a domain; with a mix; null: any"
    )
    max_bytes: int | None = Field(default=None, gt=0, description="of text to use")
    docs_bytes: int | None = Field(default=None, gt=0, description="of the embedded corpus, where 'docs' is a source")
    seed: int = Field(default=0, ge=0, lt=2**63, description="which documents go to dev and test")
    workers: int | None = Field(default=None, ge=1, description="processes; default: one a CPU core")

    @field_validator("source")
    @classmethod
    def _some_source(cls, source: str | list[str] | None) -> str | list[str] | None:
        if source is not None and (not source or not all([source] if isinstance(source, str) else source)):
            raise ValueError("name at least one file, folder or 'docs'")
        return source

    @field_validator("sources")
    @classmethod
    def _some_sources(cls, sources: dict[str, str | list[str]] | None) -> dict[str, str | list[str]] | None:
        if sources is not None:
            if not sources or not all(sources.values()):
                raise ValueError("name at least one domain and its text: {legal: FILE OR FOLDER, ...}")
            for name in sources:
                if (unfit := unfit_for_a_domain(name)) is not None:
                    raise ValueError(unfit)
        return sources

    @field_validator("mix")
    @classmethod
    def _shares(cls, mix: Any) -> Any:
        if isinstance(mix, dict):
            if any(not math.isfinite(share) or share < 0 for share in mix.values()) or not any(mix.values()):
                raise ValueError("shares are numbers >= 0 of which at least one is above 0")
            total = sum(mix.values())
            if abs(total - 1) > 1e-3:
                raise ValueError(f"the shares sum to {total:g}, not to 1")
        return mix

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("sources") is not None:
            if values.get("source") is not None:
                raise ValueError("source and sources both name the text; give one of them")
            return {"mix": "proportional", **values, "source": None}
        return values

    @model_validator(mode="after")
    def _has_text(self) -> "DataConfig":
        if self.source is None and self.sources is None:
            raise ValueError("name the text: source, or sources")
        if self.max_repeats is not None and self.mix in (None, "characters"):
            raise ValueError("max_repeats is of domains that are mixed: set mix too, and not to characters")
        if isinstance(self.mix, dict) and self.sources is not None and self.mix.keys() - self.sources.keys():
            unknown = min(self.mix.keys() - self.sources.keys())
            raise ValueError(f"mix names '{unknown}', and sources {', '.join(self.sources)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _of_a_trained_tokenizer(cls, values: Any) -> Any:
        """What is written down is what runs: numbers where a tokenizer is trained, nothing where one is loaded."""
        if not isinstance(values, Mapping):
            return values
        tokenizer = values.get("tokenizer", "wordpiece")
        filled = dict(values)
        for key, default in OF_TRAINED.items():
            given = values.get(key)
            if tokenizer in TRAINED and (key != "lowercase" or tokenizer == "wordpiece"):
                filled[key] = default if given is None else given
            elif key == "lowercase" and tokenizer in TRAINED and given is False:
                filled[key] = None
            elif given is not None:
                what = f"{tokenizer} {'keeps the case of letters' if tokenizer in TRAINED else 'is loaded as it is'}"
                raise ValueError(f"{key}={given} cannot be had: {what}; leave {key} out")
        return filled

    @model_validator(mode="after")
    def _shares_leave_training_text(self) -> "DataConfig":
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share leave no text to train on")
        return self

    @property
    def tells_domains(self) -> bool:
        """Whether a run tells the domains of its text from each other."""
        return self.mix not in (None, "characters")

    @property
    def places(self) -> list[str]:
        """All files, folders and so on that are named."""
        return [place for _, place in self.named_places]

    @property
    def named_places(self) -> list[tuple[str | None, str]]:
        """(domain, place) of each; None: the text says its domains itself."""
        named = {None: self.source} if self.sources is None else self.sources
        return [
            (domain, place)
            for domain, places in named.items()
            for place in ([places] if isinstance(places, str) else places or [])
        ]


def lay_on(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on the data settings of a recipe: where it changes the source or the tokenizer, the recipe's settings
    of its own source and tokenizer go, and those of all text where the new source is a prepared folder."""
    gone: set[str] = set()
    if over.get("tokenizer", TRAINED[0]) not in TRAINED:
        gone |= OF_TRAINED.keys()
    if over.get("tokenizer", "wordpiece") != "wordpiece":
        gone.add("lowercase")
    if over.get("sources") is not None:
        gone |= {"source", "docs_bytes"}
    if over.get("source") is not None:
        gone |= {"sources"}
        given = over["source"]
        sources = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
        if "docs" not in sources:
            gone.add("docs_bytes")
        if _prepared(sources) is not None:
            gone |= base.keys() - {"workers", "mix"}
    return merge({key: value for key, value in base.items() if key not in gone}, over)


def as_prepared(config: DataConfig, given: Collection[str]) -> DataConfig:
    """`config` with the settings that its source was prepared with, if that is a prepared folder; else as it is.

    Raises UserError for one of the `given` settings that the folder does not have, and for prepared folders among
    other sources.
    """
    manifest = _prepared(config.places)
    if manifest is None:
        return config
    ran = {key: value for key, value in manifest.settings.items() if key in DataConfig.model_fields}
    for key in given:
        value = getattr(config, key)
        if key in OF_RUN or value is None:
            continue
        has = ran.get(key, manifest.vocabulary["size"] if key == "vocab_size" else None)
        if has != value and not (key == "tokenizer" and same_tokenizer(value, manifest)):
            raise UserError(
                f"{config.places[0]} is prepared, with {key}={has}, and data.{key}={value} cannot be had from it; "
                "leave that out, or prepare the text with it into a new folder"
            )
    if "max_unknown" in given:
        check_known(manifest.unknown_share, config)
    kept = {key: getattr(config, key) for key in OF_RUN}
    return load_settings(DataConfig, {**ran, **kept}, "data")


def check_known(unknown: float, config: DataConfig) -> None:
    """Raise UserError where more than `max_unknown` of the tokens of a text are its tokenizer's unknown token."""
    if unknown > config.max_unknown:
        raise UserError(
            f"the tokenizer {config.tokenizer} does not know this text: {unknown:.1%} of its tokens are unknown; "
            f"choose another tokenizer, or allow it with max_unknown={min(1.0, unknown + 0.01):.2f}"
        )


def _prepared(sources: list[str]) -> Manifest | None:
    """The manifest of a source that is a prepared folder. Raises UserError where it is one of several."""
    found = [(source, manifest) for source in sources if (manifest := read_manifest(source)) is not None]
    if found and len(sources) > 1:
        raise UserError(f"{found[0][0]} is a prepared folder, which takes no other source beside it; name it alone")
    return found[0][1] if found else None


def same_tokenizer(name: str, manifest: Manifest) -> bool:
    """Whether the tokenizer `name` is the one that a folder was prepared with, however it was named then."""
    return name not in TRAINED and vocabulary_hash(load_tokenizer(name)) == manifest.vocabulary_sha256
