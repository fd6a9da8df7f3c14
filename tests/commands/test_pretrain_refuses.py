"""`mlpt pretrain` on bad input: one line, exit code 2, and no folder of a run that never began."""

import pytest

RECIPES = [
    ("pretrain nothing", "there is no recipe 'nothing'; there are"),
    ("pretrain ''", "there is no recipe ''; there are"),
    ("pretrain missing.yaml", "there is no recipe file missing.yaml"),
    ("pretrain broken.yaml", "broken.yaml is not YAML"),
    ("pretrain list.yaml", "list.yaml holds no settings"),
    ("pretrain latin.yaml", "latin.yaml is not UTF-8 text (invalid continuation byte at position 3); save it"),
    ("pretrain wide.yaml", "unknown setting 'trian'; did you mean 'train'?"),  # UTF-16, whose mark says so
    ("pretrain deep.yaml", "deep.yaml nests brackets or sections too deeply to be read"),
    ("pretrain day.yaml", "day.yaml holds a value that YAML cannot read (day is out of range for month); quote it"),
    (["pretrain", f"seed={3000 * '['}"], f"the value of seed cannot be read as YAML: '{99 * '['}...; quote it"),
    ("pretrain typo.yaml", "unknown setting 'trian'; did you mean 'train'?"),
    ("pretrain recipe.yaml other.yaml", "give one recipe, not 2: recipe.yaml, other.yaml"),
    ("pretrain recipe.yaml =3", "give one recipe, not 2: recipe.yaml, =3"),
    ("pretrain --resum run", "no such option: --resum"),
]
PLACES = [
    ("pretrain recipe.yaml", "run holds a run of this very configuration"),
    ("pretrain recipe.yaml train.steps=3", "run holds a run of another configuration; go on with it by"),
    ("pretrain recipe.yaml run_dir=user", "user is not empty (it holds notes.md) and is not a run that mlpt made"),
    ("pretrain recipe.yaml run_dir=user --overwrite", "is not empty (it holds notes.md)"),
    ("pretrain recipe.yaml run_dir=exported --overwrite", "is not a run that mlpt made; name a new folder"),
    ("pretrain recipe.yaml run_dir=file", "file is a file; name a folder"),
    ("pretrain recipe.yaml run_dir=file/run", "file is a file, not a folder; check the path"),
    (f"pretrain recipe.yaml run_dir={'n' * 300}", "the name is too long; choose a shorter one"),
    ("pretrain recipe.yaml run_dir=s3://", "s3:// names no place; write it as s3://bucket/folder"),
    ("pretrain recipe.yaml run_dir=xyz://bucket/run", "Protocol not known: xyz"),
    ("pretrain recipe.yaml run_dir=s3://me:secret@bucket/run", "s3://bucket/run holds a password"),
    ("pretrain recipe.yaml --overwrite data.source=missing.txt", "missing.txt: there is no such file or folder"),
    ("pretrain recipe.yaml --overwrite data.source=short.txt", "the text is one document"),
    ("pretrain recipe.yaml --overwrite model.pretrained='cut model'", "cannot load a masked language model"),
]
RESUMED = [
    ("pretrain --resume missing", "missing holds no run: it has no config.yaml"),
    ("pretrain --resume user", "user holds no run"),
    ("pretrain --resume file", "file holds no run"),
    ("pretrain --resume exported", "exported holds no run"),
    ("pretrain --resume 'cut run'", "cut run/config.yaml is damaged"),
    ("pretrain --resume run recipe.yaml", "--resume takes the run's own configuration"),
    ("pretrain --resume run --overwrite", "--resume goes on with a run and --overwrite replaces one"),
    ("pretrain --resume xyz://bucket/run", "Protocol not known: xyz"),
    ("pretrain --resume run model.layers=9", "model.layers cannot change in the middle of a run"),
    ("pretrain --resume run lr=3", "unknown setting 'lr'; did you mean 'train.optimizer.lr'?"),
    ("pretrain --resume run train.steps=1", "--resume can only make a run longer: it has 2 steps and would have 1"),
    ("pretrain --resume 'unfinished run'", "unfinished run has no checkpoint to go on from"),
    ("pretrain --restart", "--restart begins the run that --resume names again"),
    ("pretrain --resume", "option '--resume' requires an argument"),
]
TRAINING = [
    ("train.steps=0", "setting 'train.steps': Input should be greater than 0 (got 0)"),
    ("train.steps=many", "setting 'train.steps': Input should be a valid integer"),
    ("train.steps.more=3", "setting 'train.steps': Input should be a valid integer"),
    ("train.batch_size=3.5", "setting 'train.batch_size'"),
    ("train.micro_batch_size=3", "batch_size 4 is not a multiple of micro_batch_size 3"),
    ("'train.optimizer.betas=[1,2]'", "setting 'train.optimizer.betas.0': Input should be less than 1 (got 1)"),
    (f"seed=0x{5000 * 'f'}", "seed is a number of thousands of digits; give a smaller one"),
    ("train.optimizer.lr=-1", "setting 'train.optimizer.lr': Input should be greater than 0"),
    ("train.optimizer.lr=.nan", "setting 'train.optimizer.lr'"),
    ("train.optimizer.betas=[.9,1]", "setting 'train.optimizer.betas.1': Input should be less than 1"),
    ("'train.optimizer={kind: bert_adam, betas: [-.1,.9]}'", "'train.optimizer.betas.0': Input should be greater"),
    ("train.schedule.warmup=50", "the schedule needs 50 steps of warm-up"),
    ("train.precision=fp8", "setting 'train.precision': Input should be 'float32', 'bf16' or 'fp16'"),
    ("train.keep=0", "setting 'train.keep'"),
    ("train=fast", "setting 'train': needs settings of its own"),
    ("'train={steps: [1}'", "the value of train cannot be read as YAML"),
    ("seed=x", "setting 'seed': Input should be a valid integer"),
    ("name=a/b", "setting 'name'"),
    ("report.progress=loud", "setting 'report.progress'"),
    ("objectives=nothing", "there is no objective 'nothing'; there are mlm"),
    ("objectives=[mlm,nothing]", "there is no objective 'nothing'"),
    ("objectives=[]", "at least one objective is needed"),
    ("objectives=7", "setting 'objectives': needs settings of its own"),
    ("objectives.mlm.probability=2", "mlpt: setting 'objectives.mlm.probability': Input should be less"),
    (
        "objectives.mlm.prob=.2",
        "mlpt: unknown setting 'objectives.mlm.prob'; did you mean 'objectives.mlm.probability'",
    ),
    ("meta.rules.mixture.rule=best", "there is no rule of mixture 'best'; there are fixed, uniform"),
    ("meta.rules.mixture=7", "meta.rules.mixture is a rule's name or its settings"),
    ("meta.rules.mixture=null", "meta.rules needs a rule of the mixture"),
    ("meta.rules.weather=sunny", "no rule here learns a part 'weather'"),
    ("meta.rules.masks=mask_scores", "meta.rules.masks learns the scores itself: give a masks section"),
    ("meta.mixture.rule=uniform", "meta.mixture is now meta.rules.mixture"),
    ("meta.masks.lr=1", "meta.masks is now meta.rules.masks"),
    ("meta.lookahead.engine=magic", "there is no engine 'magic'; there are auto, higher"),
    ("meta.target=cse", "meta.target names 'cse', which this run neither trains nor measures"),
    ("'meta.rules.mixture={rule: fixed, weights: {cse: 1}}'", "names 'cse', which this run does not train"),
    ("meta.lag=-1", "setting 'meta.lag'"),
    ("meta.interval=10 meta.lag=20", "lag (20) cannot exceed interval (10)"),
    ("'masks={sparsity: 2}'", "setting 'masks.sparsity': Input should be less than 1"),
    ("'masks={init: file}'", "init: file and file: PATH go together"),
    ("'masks={init: file, file: missing}'", "there is no mask file at missing"),
    ("'masks={modules: nothing.*}'", "no linear layer of this model matches"),
    ("runtime.num_workers=-1", "setting 'runtime.num_workers'"),
    ("'runtime.num_workers=[2,1]'", "[min, max] with 1 <= min <= max"),
    ("runtime.num_workers=3", "3 workers need a micro-batch each"),
    ("runtime.num_workers=1 runtime.address=127.0.0.1:9", "cannot reach Ray at runtime.address=127.0.0.1:9"),
]
MODELS = [
    ("model.heads=3", "hidden_size 32 is not a multiple of 3 heads"),
    ("model.architecture=brt", "did you mean 'bert'?"),
    ("model.architecture=gpt2", "'gpt2' is no architecture with a masked language model"),
    (
        "model.options.hidden_act=x",
        "'bert' cannot be made with model.options={'hidden_act': 'x'} and its sizes (KeyError",
    ),
    ("model.options.layer_norm_eps=x", "Field 'layer_norm_eps' expected float, got str"),
    ("model.options.max_position_embeddings=2", "leaves room for 2 tokens, and blocks have 32; raise it, or leave it"),
    ("model.options.pad_token_id=99999", "Padding_idx must be within num_embeddings"),
    ("'model.options={nothing: 3}'", "'bert' has no option 'nothing'"),
    ("model.attention=flash", "setting 'model.attention'"),
    ("model.pretrained=./missing", "there is no folder './missing'"),
    ("model.pretrained=run/model model.hidden_size=64", "hidden_size=64 is for new models"),
    ("model.pretrained='cut model'", "cut model': give a folder with config.json"),
    ("data.mix=learnt", "setting 'data.mix': Input should be 'proportional', 'uniform', 'characters' or 'learned'"),
    ("'data.sources={no: text.txt}'", "data.sources: YAML reads a name as False; quote it, as in 'no' or 'off'"),
    ("data.source=missing.txt", "missing.txt: there is no such file or folder"),
    ("'data.source=cut blocks'", "cut blocks/manifest.json is damaged"),
    ("blocks=user data.source=text.txt", "user is not empty (it holds notes.md)"),
    ("blocks=file data.source=text.txt", "file is a file"),
    ("blocks=blocks data.source=text.txt data.block_size=16", "blocks holds blocks prepared with"),
]


@pytest.mark.parametrize(("line", "says"), RECIPES + PLACES + RESUMED)
def test_a_recipe_or_a_place_that_cannot_be_used(workspace, line, says):
    workspace.refuses(line, says)


@pytest.mark.parametrize(("words", "says"), TRAINING + MODELS)
def test_a_setting_that_cannot_be(workspace, words, says):
    workspace.refuses(f"pretrain recipe.yaml run_dir=new/run {words}", says)


@pytest.mark.parametrize("damage", ["", '{"blocks"', "[]", '{"blocks": "blocks"}'])
def test_a_run_whose_list_of_blocks_is_cut(own_workspace, damage):
    (own_workspace.folder / "run/blocks.json").write_text(damage)
    for command in ("pretrain --resume run train.steps=3", "pretrain --resume run --restart", "evaluate run"):
        ended = own_workspace.run(command)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended
        assert "blocks.json is damaged; remove it and resume the run" in ended.err
    (own_workspace.folder / "run/blocks.json").unlink()
    assert own_workspace.run("pretrain --resume run train.steps=3").code == 0
    assert own_workspace.run("evaluate run --batches 1").code == 0


def test_more_workers_than_cores_are_refused_before_ray_starts(workspace):
    asked = "runtime.num_workers=512 train.batch_size=512 train.micro_batch_size=1"
    workspace.refuses(f"pretrain recipe.yaml run_dir=new {asked}", "512 workers need 512 CPUs and this machine has")
    asked = "runtime.num_workers=1 runtime.cpus_per_worker=4096"
    workspace.refuses(f"pretrain recipe.yaml run_dir=new {asked}", "1 worker needs 4096 CPUs")


NAMES = [
    ("lr=1", "'train.optimizer.lr'? (peak learning rate)"),
    ("learning_rate=1", "'train.optimizer.lr'? (peak learning rate)"),
    ("train.lr=1", "'train.optimizer.lr'? (peak learning rate)"),
    ("optimizer.lr=1", "'train.optimizer'?"),
    ("steps=1", "'train.steps'? (optimiser steps)"),
    ("epochs=3", "'train.steps'? (optimiser steps)"),
    ("batch_size=1", "'train.batch_size'? (blocks in a global step)"),
    ("mask_rate=.2", "'objectives.mlm.probability'? (chance of a non-special position to be chosen)"),
    ("hidden_size=9", "'model.hidden_size'? (width of every layer)"),
    ("num_layers=2", "'model.layers'? (number of layers)"),
    ("seq_len=9", "'data.block_size'? (tokens a block, special ones included)"),
    ("warmup=1", "'train.schedule.warmup'?"),
    ("fp16=true", "'train.precision'? (float32 or bf16 or fp16)"),
    ("output_dir=x", "'run_dir'?"),
    ("workers=2", "'runtime.num_workers' (Ray Train workers)?"),
    ("sparsity=.5", "'masks.sparsity'?"),
]


@pytest.mark.parametrize(("word", "meant"), NAMES)
def test_a_name_from_elsewhere_finds_the_setting_that_is_meant(workspace, word, meant):
    key = word.partition("=")[0]
    workspace.refuses(f"pretrain recipe.yaml run_dir=new {word}", meant)
    assert f"unknown setting '{key.split('.')[0]}" in workspace.run(f"pretrain recipe.yaml run_dir=new {word}").err


def test_a_plain_word_names_an_objective(own_workspace):
    ended = own_workspace.run("pretrain recipe.yaml run_dir=new objectives=dtd")
    assert ended.code == 0, ended
    assert "dtd" in ended.out
    assert "mlm" not in ended.out


def test_a_failed_start_does_not_block_the_corrected_command(own_workspace):
    assert own_workspace.run("pretrain recipe.yaml run_dir=new data.source=missing.txt").code == 2
    assert not (own_workspace.folder / "new").exists()
    assert own_workspace.run("pretrain recipe.yaml run_dir=new").code == 0


def test_a_start_that_was_killed_does_not_block_the_corrected_command(own_workspace):
    run = own_workspace.folder / "new"
    for folder in ("checkpoints", "logs", "policies"):
        (run / folder).mkdir(parents=True)
    (run / "config.yaml").write_text("name: another\n")
    (run / "logs/rank_0.log").write_text("killed\n")
    assert own_workspace.run("pretrain recipe.yaml run_dir=new").code == 0
    assert "killed" not in (run / "logs/rank_0.log").read_text()
