"""Short runs of every shipped recipe, and the loss curves that they are known to give.

    python tests/golden/golden_runs.py curves [FOLDER]   write the curves (default: over the kept ones; `make golden`)
    python tests/golden/golden_runs.py keep              keep a run of this version for later versions to go on with
    python tests/golden/golden_runs.py go-on RUN FILE    go on with a kept run, and write its curve to FILE

Text, vocabulary and rows are made here, from integers alone, so that no version of anything decides what is trained on.
One thread, float32, and kernels that every processor of one kind has: the numbers are a function of the code and of
what `made_with.json` names, the processor with it: libraries choose some kernels by its model, whatever is asked for.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CURVES = HERE / "curves"
KEPT = HERE / "kept"
PACKAGES = ("higher", "numpy", "safetensors", "scikit-learn", "scipy", "tokenizers", "torch", "transformers")
# Read when torch and its libraries are loaded. Without them a processor's widest vectors decide how sums are cut up.
PLAIN_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

_WORDS = """
the a of to and in is it on for with as by at from or an be this that not are was all one two into over under out good
bad fine poor cat dog bird fish house tree river stone sun moon red blue green small large old new fast slow reads
writes sees takes gives finds keeps makes runs sleeps
"""
WORDS = _WORDS.split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "0", "1", "2", ".", *WORDS]


def numbers(seed: int) -> Iterator[int]:
    """A linear congruential generator (the constants of Knuth's MMIX), of which the upper bits are taken."""
    state = seed
    while True:
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        yield state >> 33


def sentence(draw: Iterator[int], *extra: str) -> str:
    """5 to 14 words in which each one narrows down the next, so that there is something to learn."""
    at, words = next(draw) % len(WORDS), list(extra)
    for _ in range(5 + next(draw) % 10):
        words.append(WORDS[at])
        at = (at * 7 + 3 + next(draw) % 3) % len(WORDS)
    return " ".join(words)


def write_text(folder: Path) -> None:
    draw = numbers(1)
    documents = [" . ".join(sentence(draw) for _ in range(3)) for _ in range(400)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    jumbled = (" ".join(WORDS[next(draw) % len(WORDS)] for _ in range(30)) for _ in range(400))
    (folder / "jumbled.txt").write_text("\n\n".join(jumbled))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")


def write_bert(folder: Path) -> None:
    """A stock model with weights from torch's generator and the vocabulary above."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from mlpt.data.tokenizers import load_tokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder / "bert")
    load_tokenizer(str(folder / "tokenizer")).save_pretrained(folder / "bert")


def write_tasks(folder: Path) -> None:
    """Files in the layout of GLUE and SQuAD."""
    draw = numbers(2)

    def table(task: str, split: str, rows: int, header: list[str], row: Callable[[int], list[str]]) -> None:
        file = folder / "tasks" / "GLUE" / task / f"{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [header] if header else []
        file.write_text("".join("\t".join(line) + "\n" for line in [*lines, *(row(n) for n in range(rows))]))

    def pair(n: int, labels: tuple[str, ...]) -> list[str]:
        first = sentence(draw)
        return [str(n), first, first if n % 2 else sentence(draw, "not"), labels[n % len(labels)]]

    for split, rows in (("train", 64), ("dev", 24)):
        table("CoLA", split, rows, [], lambda n: ["x", str(n % 2), "", sentence(draw, "good" if n % 2 else "bad")])
        table(
            "SST-2", split, rows, ["sentence", "label"], lambda n: [sentence(draw, ["bad", "fine"][n % 2]), str(n % 2)]
        )
        header = ["index", "sentence1", "sentence2", "label"]
        table("RTE", split, rows, header, lambda n: pair(n, ("not_entailment", "entailment")))
        header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        table("MRPC", split, rows, header, lambda n: [str(n % 2), "0", "0", *pair(n, ("",))[1:3]])
        header = ["index", "sentence1", "sentence2", "score"]
        table("STS-B", split, rows, header, lambda n: [*pair(n, ("",))[:3], f"{n % 2 * 4 + n % 3 * 0.5:g}"])
    for split, rows in (("train", 64), ("dev_matched", 24), ("dev_mismatched", 24)):
        header = ["index", "sentence1", "sentence2", "gold_label"]
        table("MNLI", split, rows, header, lambda n: pair(n, ("contradiction", "entailment", "neutral")))
    for split, rows in (("train", 48), ("dev", 16)):
        paragraphs = []
        for n in range(rows):
            answer = WORDS[30 + next(draw) % 20]
            context = f"{sentence(draw)} {answer} {sentence(draw)}"
            answers = [{"text": answer, "answer_start": context.index(f" {answer} ") + 1}]
            question = {"id": str(n), "question": f"is it {answer}", "answers": answers}
            paragraphs.append({"context": context, "qas": [question]})
        file = folder / "tasks" / "SQuAD" / f"{split}-v1.1.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))


PLACE = "/where/it/lies"  # in the files of a kept run
NEW = {"hidden_size": 32, "layers": 2, "heads": 2}
TEACHER = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32, "positions": 16}
HALF = {
    "model": {"hidden_size": 16, "layers": 1},
    "train": {"steps": 12, "schedule": {"length": 24}, "checkpoint_every": 6, "keep": 1},
}
SMALL_MASKS = {"train": {"steps": 24, "optimizer": {"lr": 2.0e-3}, "schedule": {"length": 30}}}
# recipe -> what makes it short
PRETRAINING: dict[str, dict[str, Any]] = {
    "quickstart": {"model": NEW, "meta": {"interval": 4, "lag": 4, "lookahead": {"start": 8}}},
    "domains": {
        "model": NEW,
        "blocks": None,
        "meta": {"interval": 2, "lag": 2, "lookahead": {"start": 4, "batch_size": 16, "dev_batch_size": 16}},
        "train": {"micro_batch_size": 2},
    },
    "mometas": {"model": NEW, "meta": {"interval": 4, "lag": 4}},
    "tamt_meta": {
        "model": NEW,
        "meta": {"interval": 3, "lag": 3, "lookahead": {"start": 6}, "rules": {"masks": {"lr": 0.02}}},
    },
    "tamt_mlm": {**SMALL_MASKS, "masks": {"reset": {"interval": 5}}},
    "tamt_mlm_kd": {**SMALL_MASKS, "masks": {"reset": {"interval": 5}}},
    "tamt_kd": {"train": {"steps": 24, "optimizer": {"lr": 2.0e-3}}, "masks": {"reset": {"interval": 5}}},
    "self_evolution_online": {
        "meta": {"interval": 4, "lag": 4},
        "train": {
            "steps": 24,
            "optimizer": {"lr": 2.0e-3},
            "schedule": {"warmup": 2},
            "evaluate_every": 0,
            "checkpoint_every": 12,
        },
    },
    "tamt_imp": {**SMALL_MASKS, "masks": {"iterative": {"interval": 5}}},
    # Teachers that learn fast, so that the curve has what they learned.
    "denoiser": {
        "model": NEW,
        "objectives": {"teacher_made": {"network": TEACHER}},
        "meta": {"interval": 3, "lag": 3, "rules": {"teacher": {"start": 0, "optimizer": {"lr": 1.0e-2}}}},
    },
    "masker": {"model": NEW, "meta": {"interval": 3, "lag": 3, "rules": {"teacher": {"optimizer": {"lr": 0.3}}}}},
    "metalmo": {
        "blocks": None,
        "data": {"tokenizer": "task_bpe", "vocab_size": 320},
        "model": {**NEW, "intermediate_size": 64},
        "objectives": {"teacher_made": {"network": TEACHER}},
        "meta": {"rules": {"teacher": {"tasks": [], "rows": None}}},  # judged by held-out text: no tasks' files
        "train": {"micro_batch_size": 8, "schedule": {"warmup": 8}},
    },
}
FEW_GLUE, GLUE = ["cola", "sst2"], ["cola", "rte", "mrpc", "stsb"]
FINE_TUNING: dict[str, dict[str, Any]] = {
    "tamt_few_glue": {"tasks": FEW_GLUE, "subset": 48},
    "tamt_few_mnli": {"subset": 48},
    "tamt_few_squad": {"subset": 32, "max_length": 48, "span": {"doc_stride": 16, "question_length": 8}},
    "tamt_glue": {"tasks": GLUE},
    "tamt_mnli": {},
    "tamt_squad": {"max_length": 48, "span": {"doc_stride": 16, "question_length": 8}},
}
MULTITASK = {
    "multitask_uncertainty": {"sampler": {"rule": "mt_uncertainty", "rescore_every": 3}},
    "multitask_published": {"published": True},
    "multitask_mometas": {"sampler": {"rule": "policy", "interval": 3, "learner": {"rule": "mometas"}}},
}


def pretraining(recipe: str, folder: Path, run_dir: Path, **more: Any) -> list[dict[str, Any]]:
    """Run a recipe in short; what `metrics.jsonl` tells, but for times."""
    from mlpt.run.launch import pretrain
    from mlpt.settings import merge

    settings: dict[str, Any] = {
        "run_dir": str(run_dir),
        "blocks": str(folder / "blocks"),
        "data": {"source": str(folder / "text.txt"), "tokenizer": str(folder / "tokenizer"), "block_size": 16},
        "train": {"steps": 24, "batch_size": 8, "log_every": 1, "evaluate_batches": 4, "checkpoint_every": 12},
        "runtime": {"num_workers": 0},
        "report": {"tensorboard": False, "progress": "off"},
    }
    if "model" not in PRETRAINING[recipe]:
        settings["model"] = {"pretrained": str(folder / "bert")}
        settings["data"]["tokenizer"] = str(folder / "bert")
        settings["blocks"] = str(folder / "blocks_of_bert")
    if recipe == "domains":
        del settings["data"]["source"]
        settings["data"]["sources"] = {name: str(folder / f"{name}.txt") for name in ("text", "jumbled")}
        settings["meta"] = {"target": {"texts": str(folder / "text.txt")}}
    settings |= {"data": more.pop("data", settings["data"])}
    pretrain(recipe, merge(merge(settings, PRETRAINING[recipe]), more))
    return curve_of(run_dir)


def curve_of(run_dir: Path) -> list[dict[str, Any]]:
    """One mapping for each line of `metrics.jsonl`, of its losses, scores and mixture alone."""
    kept = ("step", "loss", "dev", "held_out", "held_out_before", "mixture", "rows")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in kept if key in line} for line in lines]


def fine_tuning(preset: str, folder: Path, out: Path) -> dict[str, Any]:
    from mlpt.downstream.command import read_preset
    from mlpt.downstream.config import FinetuneConfig, cells
    from mlpt.downstream.finetune import finetune
    from mlpt.settings import load_settings, merge

    common = {
        "model": str(folder / "bert"),
        "source": {"data_dir": str(folder / "tasks")},
        "out": str(out),
        "seeds": [1],
        "learning_rates": [5.0e-3],
        "batch_size": 8,
        "max_steps": 40,
        "evaluate_every": 20,
        "predict_test": False,
        "keep_model": "none",
    }
    preset_values = {
        name: value for name, value in read_preset(preset).items() if name not in ("epochs", "evaluate_epochs")
    }
    config = load_settings(FinetuneConfig, merge(merge(preset_values, common), FINE_TUNING[preset]))
    results = finetune(config, lambda text: None)
    folders = {cell.task: cell.folder for cell in cells(config)}
    return {task: curve_of(place) for task, place in folders.items()} | {
        f"{result.task}, best": result.best for result in results
    }


def multitask(name: str, folder: Path, out: Path) -> list[dict[str, Any]]:
    from mlpt.downstream.multitask.config import MultitaskConfig
    from mlpt.downstream.multitask.run import run_multitask
    from mlpt.settings import load_settings

    common = {
        "model": str(folder / "bert"),
        "tasks": ["sst2", "rte", "stsb"],
        "source": {"data_dir": str(folder / "tasks")},
        "out": str(out),
        "conditional": {"max_length": 32},
        "batch_size": 8,
        "max_steps": 24,
        "evaluate_every": 12,
        "optimizer": {"lr": 3.0e-3},
        "predict_test": False,
        "keep_model": "none",
    }
    run_multitask(load_settings(MultitaskConfig, common | MULTITASK[name]), lambda text: None)
    return curve_of(out)


def made_with() -> dict[str, str]:
    """What the bits of the curves depend on besides the code."""
    machine = {"machine": platform.machine(), "processor": processor(), "system": platform.system()}
    return {**machine, **{name: version(name) for name in PACKAGES}}


def processor() -> str:
    """Its vendor, family and model."""
    file = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    known = [found[key] for key in ("vendor_id", "cpu family", "model") if key in found]
    return " ".join(known) or platform.processor()


def write_inputs(folder: Path) -> None:
    """What the runs are made of."""
    write_text(folder)
    write_bert(folder)
    write_tasks(folder)


def write_curves(target: Path) -> None:
    """Run everything; one JSON file a curve, and what they were made with."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_inputs(folder)
        curves: dict[str, Any] = {name: pretraining(name, folder, folder / name) for name in PRETRAINING}
        curves |= {f"finetune_{name}": fine_tuning(name, folder, folder / f"finetune_{name}") for name in FINE_TUNING}
        curves |= {name: multitask(name, folder, folder / name) for name in MULTITASK}
    for name, curve in curves.items():
        (target / f"{name}.json").write_text(json.dumps(curve, indent=1) + "\n")
    (target / "made_with.json").write_text(json.dumps(made_with(), indent=1) + "\n")


def keep_run(target: Path) -> None:
    """A run that stands in the middle, its blocks, and the curve that it gives when it goes on to its end."""
    from mlpt.data.config import DataConfig
    from mlpt.data.prepare import prepare

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_text(folder)
        prepare(DataConfig(source=str(folder / "text.txt"), vocab_size=150, block_size=16), str(folder / "blocks"))
        own = {"blocks": None, "data": {"source": str(folder / "blocks")}}
        pretraining("mometas", folder, folder / "run", **HALF, **own)
        shutil.rmtree(folder / "run" / "logs")
        for name in ("report.html", "model/README.md", ".running"):  # for people, with the place in them
            (folder / "run" / name).unlink(missing_ok=True)
        for name in ("run", "blocks"):
            shutil.copytree(folder / name, target / name)
        for file in target.rglob("*"):  # where it was made says nothing; whoever goes on with it puts in where it lies
            if file.suffix in (".json", ".yaml") and str(folder) in file.read_text():
                file.write_text(file.read_text().replace(str(folder), PLACE))
        curve = go_on(folder / "run")
    (target / "made_with.json").write_text(json.dumps(made_with(), indent=1) + "\n")
    (target / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")


def go_on(run_dir: Path) -> list[dict[str, Any]]:
    """The curve of a kept run that has gone on to its end."""
    from mlpt.run.launch import pretrain

    pretrain(resume=run_dir, settings={"train": {"steps": 24}, "report": {"progress": "off"}})
    return curve_of(run_dir)


def copy_of_kept(kept: Path, folder: Path) -> Path:
    """A copy of a kept run that knows where it lies; the copy."""
    shutil.copytree(kept, folder)
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".yaml") and PLACE in file.read_text():
            file.write_text(file.read_text().replace(PLACE, str(folder)))
    return folder


def go_on_with_kept(kept: Path, target: Path) -> None:
    """Go on with a copy of a kept run, and write its curve to the file `target`."""
    with tempfile.TemporaryDirectory() as made:
        copy = copy_of_kept(kept, Path(made).resolve() / "kept")
        target.write_text(json.dumps(go_on(copy / "run")))


def main(words: list[str]) -> None:
    os.environ |= PLAIN_KERNELS
    match words:
        case ["curves", *folder]:
            write_curves(Path(folder[0]) if folder else CURVES)
        case ["keep"]:
            keep_run(KEPT / version("mlpt"))
        case ["go-on", kept, target]:
            go_on_with_kept(Path(kept), Path(target))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
