"""The tables of the run file as frozen typed models; `schemas.runfile` puts them together. docs/runfile.md lists them.

A key is *semantic* when another value may change the bytes or the meaning of the output, and *operational* when it only
changes where or how fast the work is done. Each field carries that mark, so that the fingerprint
walks the models and no list of names can fall behind them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.runfile_errors import Fault, Faults, show

STUDENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def key(
    default: Any = ..., *, semantic: bool, about: str, wanted: str | None = None, newer: bool = False, **limits: Any
) -> Any:
    """A field with its mark. `wanted` replaces the words that error messages derive from the type. newer: a run that leaves the
    key at its default has the fingerprint that it had before there was the key."""
    extra: dict[str, Any] = {"semantic": semantic} if wanted is None else {"semantic": semantic, "wanted": wanted}
    if newer:
        extra["newer"] = True
    return Field(default, description=about, json_schema_extra=extra, **limits)


_TEMPLATE_ABOUT = (
    "Chat corpora only: the chat template, as a path to a .jinja file or as the template itself (a text with `{{{{` or "
    "`{{%`). Not given: the one that comes with {owner}."
)


class SettingsTable(BaseModel):
    # strict: "4" is not 4 and true is not 1; what is written in the file is what is meant.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TeacherConfig(SettingsTable):
    """[teacher]: the model whose next-token distributions are stored."""

    model: str = key(
        semantic=True,
        min_length=1,
        about="Any Hugging Face causal language model: a local folder or a hub id. Or one GGUF file: a path, or "
        "`owner/name/file.gguf` of the hub; needs `pip install 'targetsmith[gguf]'`.",
    )
    tokenizer: str | None = key(
        None,
        semantic=True,
        min_length=1,
        about="The teacher's tokenizer: a local folder or file, or a hub id. Not given: the one beside `model`, or in its GGUF "
        "file.",
    )
    revision: str | None = key(
        None, semantic=True, min_length=1, about="Branch, tag or commit of `model` on the hub. Not given: main."
    )
    tokenizer_revision: str | None = key(
        None,
        semantic=True,
        min_length=1,
        about="Branch, tag or commit of `tokenizer` on the hub, where one is named. Not given: main.",
    )
    adapter: str | None = key(
        None,
        semantic=True,
        min_length=1,
        newer=True,
        about="A LoRA adapter of peft for `model`, merged into its weights: a local folder or a hub id. Needs "
        "`pip install 'targetsmith[adapters]'`.",
    )
    adapter_revision: str | None = key(
        None,
        semantic=True,
        min_length=1,
        newer=True,
        about="Branch, tag or commit of `adapter` on the hub. Not given: main.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto",
        semantic=True,
        about="Number format of the weights. `auto`: the one the model was saved in; float32 on a CPU and of a GGUF file. "
        "Log-probabilities are always computed in float32.",
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", semantic=False, about="Where the model runs. `auto`: CUDA where an actor has a GPU, else the CPU."
    )
    split: Literal["auto", "tensor", "layers", "experts"] = key(
        "auto",
        semantic=False,
        about="With `[ray] num_gpus` above 1, how the model is shared out among the GPUs of an actor. `tensor`: each has a part "
        "of every layer; `layers`: each has some of the layers; `experts`: as tensor, but each expert is whole. `auto`: tensor "
        "where transformers has a plan for the model and its heads can be shared out evenly, else layers.",
    )
    max_length: int | None = key(
        None,
        semantic=True,
        ge=2,
        about="Longest context in teacher tokens. Not given: the model's own. Longer documents are read in "
        "overlapping windows, never cut.",
    )
    overlap: int = key(
        128, semantic=True, ge=0, about="Teacher tokens that two neighbouring windows of a long document share."
    )
    bos: Literal["auto"] | bool = key(
        "auto",
        semantic=True,
        about="Whether a document begins with the teacher's BOS token. `auto`: as the teacher's tokenizer does itself.",
    )
    batch_tokens: int = key(
        8192,
        semantic=False,
        ge=1,
        about="Teacher tokens in one forward pass, padding included. Less needs less memory.",
    )
    attention: Literal["auto", "tree", "states", "paths"] = key(
        "auto",
        semantic=True,
        about="How contexts that share a beginning are evaluated: `tree`, all in one pass with a tree mask; `states`, behind "
        "states of the model that are kept every few tokens; `paths`, one sequence each. `auto`: the first of these that is "
        "right.",
    )
    max_noise: float = key(
        0.02,
        semantic=False,
        ge=0,
        le=1,
        wanted="a number, 0 to 1",
        about="A teacher in half precision, or with weights that stay quantised, gives a context other distributions in other "
        "batches. How far apart they may be, as the mean total variation over the contexts of a trial at the start; with more "
        "the teacher is refused.",
    )
    chat_template: str | None = key(
        None, semantic=True, min_length=1, about=_TEMPLATE_ABOUT.format(owner="the teacher's tokenizer")
    )
    chat_template_kwargs: dict[str, str | bool | int | float] = key(
        {},
        semantic=True,
        newer=True,
        wanted="a table of texts, numbers, true and false, such as {enable_thinking = false}",
        about="Chat corpora only: values that the chat template of this side looks at, such as `{enable_thinking = false}`.",
    )
    trust_remote_code: bool = key(
        False, semantic=True, about="Run Python code that comes with the model. Only for sources that you trust."
    )

    @model_validator(mode="after")
    def _revision_of_a_tokenizer(self) -> TeacherConfig:
        if self.tokenizer_revision is not None and self.tokenizer is None:
            raise Faults(
                Fault(
                    "tokenizer_revision",
                    f"{show(self.tokenizer_revision)} without tokenizer",
                    "the hub id of a tokenizer beside it: the one that comes with `model` has the revision of the model",
                    "name it by tokenizer = ..., or remove tokenizer_revision",
                )
            )
        return self

    @model_validator(mode="after")
    def _revision_of_an_adapter(self) -> TeacherConfig:
        if self.adapter_revision is not None and self.adapter is None:
            got, wanted = f"{show(self.adapter_revision)} without adapter", "the hub id of an adapter beside it"
            raise Faults(Fault("adapter_revision", got, wanted, "name it by adapter = ..., or remove adapter_revision"))
        return self

    @model_validator(mode="after")
    def _windows_advance(self) -> TeacherConfig:
        if self.max_length is not None and self.overlap >= self.max_length:
            raise Faults(
                Fault(
                    "overlap",
                    f"{self.overlap} with max_length = {self.max_length}",
                    "fewer tokens than max_length, or a window would never advance",
                    f"set overlap = {self.max_length // 4}",
                )
            )
        return self


class StudentConfig(SettingsTable):
    """[[student]]: a vocabulary to which the teacher's distributions are carried. One or several."""

    name: str = key(
        semantic=True,
        pattern=STUDENT_NAME,
        wanted='a text of letters, digits, ".", "_" and "-" that begins with a letter or digit',
        about="Name of the student, unique in the file; its shards lie in `data/student/<name>`.",
    )
    tokenizer: str = key(
        semantic=True, min_length=1, about="The student's tokenizer: a local folder or `tokenizer.json`, or a hub id."
    )
    revision: str | None = key(
        None, semantic=True, min_length=1, about="Branch, tag or commit of `tokenizer` on the hub. Not given: main."
    )
    chat_template: str | None = key(
        None, semantic=True, min_length=1, about=_TEMPLATE_ABOUT.format(owner="the student's tokenizer")
    )
    chat_template_kwargs: dict[str, str | bool | int | float] = key(
        {},
        semantic=True,
        newer=True,
        wanted="a table of texts, numbers, true and false, such as {enable_thinking = false}",
        about="Chat corpora only: values that the chat template of this side looks at, such as `{enable_thinking = false}`.",
    )
    trust_remote_code: bool = key(
        False, semantic=True, about="Run Python code that comes with the tokenizer. Only for sources that you trust."
    )


class RayConfig(SettingsTable):
    """[ray]: where the work runs. Nothing here changes the results."""

    address: str | None = key(
        None, semantic=False, min_length=1, about="Ray cluster to join, for example `auto`. Not given: this machine."
    )
    actors: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto", semantic=False, about="Actors in all, each with its own copy of the teacher. `auto`: as many as fit."
    )
    actors_per_node: int | None = key(None, semantic=False, ge=1, about="Most actors on one node. Not given: no limit.")
    num_cpus: float = key(1.0, semantic=False, ge=0, about="CPU cores reserved per actor; fractions are allowed.")
    num_gpus: float | None = key(
        None,
        semantic=False,
        ge=0,
        about="GPUs reserved per actor. Not given: 1 if the cluster has GPUs, else 0. "
        "Above 1 they share one teacher: `[teacher] split`.",
    )
    max_in_flight: int = key(
        2, semantic=False, ge=1, about="Units handed to an actor ahead of time, the one in work included."
    )

    @model_validator(mode="after")
    def _as_ray_counts(self) -> RayConfig:
        """Ray knows no parts below 1/10,000, and of GPUs none above one."""
        faults = [
            Fault(name, f"{value}", "at most 4 digits behind the point", f"set {name} = {round(value, 4) or 0.0001}")
            for name, value in (("num_cpus", self.num_cpus), ("num_gpus", self.num_gpus))
            if value is not None and value != round(value, 4)
        ]
        if self.num_gpus is not None and self.num_gpus > 1 and self.num_gpus % 1:
            told = "a whole number, or a part of one GPU"
            faults.append(Fault("num_gpus", f"{self.num_gpus}", told, f"set num_gpus = {math.ceil(self.num_gpus)}"))
        if faults:
            raise Faults(*faults)
        return self


class QuarantineConfig(SettingsTable):
    """[quarantine]: how many bad documents a run may have. More than both of these, and it stops: exit code 3."""

    max_documents: int = key(
        20,
        semantic=False,
        ge=0,
        about="Documents in quarantine that are always allowed, whatever their share of the corpus.",
    )
    max_share: float = key(
        0.001,
        semantic=False,
        ge=0,
        le=1,
        wanted="a number, 0 to 1",
        about="Share of the corpus's documents that is always allowed in quarantine. 1: the run never stops for them.",
    )
