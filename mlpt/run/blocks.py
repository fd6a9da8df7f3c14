"""The blocks of a run: found where an earlier run left them, or prepared from its text."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from mlpt.config import RunConfig
from mlpt.data.blocks import Blocks
from mlpt.data.config import DataConfig
from mlpt.data.describe import describe
from mlpt.data.manifest import read_manifest
from mlpt.data.prepare import RunShards, input_digest, prepare
from mlpt.errors import UserError, command
from mlpt.objectives import objective_class
from mlpt.outputs import write_json
from mlpt.reporting.display import Display
from mlpt.run.folder import BLOCKS, remembered_blocks
from mlpt.settings import load_settings
from mlpt.storage.files import cache_directory, readable_errors


def blocks_of(config: RunConfig, folder: Path, display: Display, run_shards: RunShards | None = None) -> str:
    """The prepared blocks of a run: `data.source` if that is a prepared folder, else made from it.

    They are made in `config.blocks` or, by default, in the user's cache, where other runs on the same text find them.
    `run_shards` runs the shard jobs elsewhere than in this machine's processes. A run remembers which blocks it had;
    resuming it on other text is an error.
    """
    sources = config.data.places
    if len(sources) == 1 and (manifest := read_manifest(sources[0])) is not None:
        manifest = manifest.as_reused()
        blocks = str(Path(sources[0]).resolve()) if Path(sources[0]).exists() else sources[0]
    else:
        blocks = config.blocks or str(cache_directory() / "blocks" / input_digest(config.data))
        with _alone(blocks), display.bytes_done("preparing text") as progress:
            manifest = prepare(config.data, blocks, run_shards, progress)
    display.say(describe(manifest, blocks))
    remembered = remembered_blocks(folder)
    if remembered is not None and remembered["digest"] != manifest.digest:
        raise UserError(f"the text has changed since {folder} was started; start a new run on it")
    write_json(folder / BLOCKS, {"blocks": blocks, "digest": manifest.digest})
    # A model that came with a tokenizer goes on with blocks of that very tokenizer, and so does each
    # that an objective loads.
    models = [] if config.model.pretrained is None else [config.model.pretrained]
    for name, settings in config.objectives.items():
        models += objective_class(name, settings).saved_models(settings)
    if models:
        train = Blocks.open(blocks, "train")
        for model in models:
            train.require_tokenizer_of(model)
    return blocks


def with_target_texts(config: RunConfig, blocks: str, display: Display) -> RunConfig:
    """`config` with the target's own text prepared as the run's `blocks` are, with their tokenizer; its training part
    is what the meta-learner looks at, its test part what is reported.

    Raises `UserError` on a cluster for text that is not prepared: other machines would not find what is made here.
    """
    texts = config.meta.texts
    if texts is None:
        return config
    if (manifest := read_manifest(texts)) is None:
        if config.runtime.num_workers != 0 and config.runtime.address != "local":
            how = ("--set", f"tokenizer={blocks}/tokenizer", "--set", "dev_share=0")
            raise UserError(
                f"meta.target.texts={texts} must be prepared where all machines of a cluster read it: "
                f"{command('prepare', texts, '--out', 'URI', *how)}"
            )
        of = Blocks.open(blocks, "train")
        settings = {"source": texts, "tokenizer": f"{blocks}/tokenizer", "block_size": of.block_size}
        data = load_settings(DataConfig, {**settings, "dev_share": 0, "test_share": TARGET_TEST_SHARE}, "meta.target")
        made = str(cache_directory() / "blocks" / input_digest(data))
        with _alone(made), display.bytes_done("preparing the target's text") as progress:
            manifest = prepare(data, made, progress=progress)
    else:
        made = texts
        Blocks.open(blocks, "train").require_tokenizer(Blocks.open(made, "train").tokenizer(), "of the target's text ")
    display.say(f"target: {describe(manifest, made)}")
    target = {**config.meta.target, "texts": made}
    return config.model_copy(update={"meta": config.meta.model_copy(update={"target": target})})


TARGET_TEST_SHARE = 0.3  # of a target's documents


@contextmanager
def _alone(blocks: str) -> Iterator[None]:
    """Lets one process at a time prepare a local folder; the next one finds it ready.

    The lock lies in the cache: beside a folder of the user's it would stay for ever.
    """
    if "://" in blocks:
        yield
        return
    name = hashlib.blake2b(os.path.abspath(blocks).encode(), digest_size=8).hexdigest()
    locks = cache_directory() / "locks"
    with readable_errors(str(locks), "write"):
        locks.mkdir(parents=True, exist_ok=True)
        held = FileLock(locks / name).acquire()
    with held:
        yield
