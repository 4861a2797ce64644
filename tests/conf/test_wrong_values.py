"""Wrong values of settings: one line that says what and how to put it right, before anything is loaded.

A configuration is composed once for each choice of files; values are set in it afterwards. What Hydra itself refuses is
in tests/cli/test_bad_input.py, ranges and choices of single settings are in tests/unit/test_settings.py.
"""

import pytest
from plans import counted
from task_configs import TINY

from adalora_repro.errors import InputError

pytestmark = pytest.mark.usefixtures("hydra")

XSUM = "task=xsum budget=0.13% backbone=tiny-bart"

#: words (after task=sst2, unless a task is given) => what the line must say
WRONG = """
data.source=nope => unknown data.source 'nope' | valid: hub, local, sample
budget=1.10% => budget '1.10%' does not exist for task 'sst2' | valid: 0.3M, 0.6M, 1.2M
XSUM method=loha => method 'loha' has no size for budget 0.13%; valid: 0.26%, 1.10%, 2.20%
data.cache_dir='~nope/x' => '~nope/x': no such home folder
method.schedule=nope => method.schedule 'nope' | valid: absolute, scaled
method.score=nope => method.score 'nope' | valid: importance, sensitivity, gradient
method=prune_lora method.score=magnitude => method.score=magnitude is |λ|, and LoRA's doublets have no λ
method=prune_lora method.init=5 => unknown method.init '5' | valid: normal, kaiming
method=lora_regu protocol=released budget=0.08% => (method.r=1) has none; a larger method.r or budget, or
method=lora_rank_pattern => method.rank_pattern must be the folder or the record of a | run, or a JSON file, not ''
method=lora method.rank_pattern=7 => must be the folder or the record of a finished run, or a JSON file, not '7'
method=lora method.rank_pattern=nowhere => method.rank_pattern: no record 'nowhere'
method.module=base => method.module is set in a method's file | choose it with method=NAME
method=lora method.name=adalora => method.name=adalora: conf/method already has this name | with method=adalora
backbone.name=minilm => backbone.name=minilm: conf/backbone already has this name | with backbone=minilm
budget.label=1.2M => budget.label=1.2M: conf/budget already has this name | with budget=1.2M
tuned=nope => unknown tuned 'nope' | cola_adalora
task.primary_metric=nope => task.primary_metric 'nope' | valid: accuracy
task.metrics=[nope] task.primary_metric=nope => unknown metric 'nope' | valid: accuracy, f1
backbone=tiny-bart => task=sst2 needs an encoder or a decoder, backbone 'tiny-bart' is an encoder-decoder
task=xsum budget=0.13% => task=xsum needs an encoder-decoder, backbone 'tiny-bert' is an encoder
task=squad budget=0.08% => task.stride=128 must be below task.max_length=32 | a window has to bring
XSUM task.max_target_length=8 task.min_target_length=8 => task.min_target_length=8 must be below | =8
XSUM task.metrics=[rouge9] task.primary_metric=rouge9 => unknown metric 'rouge9' | rougeLsum
task.text_columns=[] => task.text_columns: sst2 reads 1 or 2, not 0
task=squad budget=0.08% task.stride=8 task.text_columns=[context] => task.text_columns: squad reads 2, not 1
task.text_columns=[label] => task.text_columns, task.label_column: column 'label' cannot be two things
task.num_labels=1 => task.label_range=[] must be two ascending numbers where task.num_labels is 1
task=stsb task.label_range=[0,inf] => task.label_range must be finite, not inf
task.num_labels=3 => task.class_names is for 2 labels, but task.num_labels=3
task=mnli task.metrics=[f1] task.primary_metric=f1_m => task.metrics: f1 is of two classes, but task.num_labels=3
task=stsb task.metrics=[corr,accuracy] => task.metrics: accuracy is of classes, but task.num_labels=1
task=mnli task.head.num_labels=2 => task.head.num_labels is for 2 labels, but task.num_labels=3
task.label_range=[0,5] => task.label_range=[0.0, 5.0] is for scores (task.num_labels=1)
task.max_length=2 => task.max_length=2 must be 3 or more: a token of each text
task=squad budget=0.08% task.stride=8 task.num_labels=3 => task.num_labels=3: start and end of a span take 2
task=squad budget=0.08% task.stride=8 task.metrics=[HasAns_f1] task.primary_metric=HasAns_f1 => unknown metric 'HasAns_f
XSUM task.max_target_length=1 => task.max_target_length=1 must be 3 or more: a token between start and end
task.auto_model=Nope => backbone 'tiny-bert' cannot be built | Nope
method.gamma=abc => method.gamma:  | 'abc' | Float
method.gamma=true => method.gamma: 
method.init_r=1.5 => method.init_r:  | '1.5' | Integer
method.targets=q => method.targets: 
method.targets=[cross_q] => method.targets | 'cross_q' | valid: q, k
method.targets=[foo] => method.targets | 'foo' | valid: q, k, v, attn_out, ffn_in, ffn_out
method.targets=[q,q] => method.targets: ['q', 'q'] names something twice
method.targets=[] => method.targets is empty
method.layers=[2] => method.layers | no layer 2 | valid: 0 to 1
method.sizes=3 => method.sizes
method.name=../elsewhere => '../elsewhere' cannot be a folder name
method=lora train.max_steps=9999999999999 => train.max_steps | T=9999999999999
method=lora train.max_steps=null train.epochs=1e23 => train.epochs | 2^40
train.grad_accumulation=9 => train.grad_accumulation=9 | train.batch_size | 8
train.padding=max_length train.group_by_length=true => train.group_by_length=true saves padding | leave one out
data.holdout=0 => data.holdout= | must be a number of rows
data.holdout=999999 => data.holdout=999999: the train split has | at least one must be left to train on
task.holdout_by=[text] => unknown column in task.holdout_by 'text'; valid: sentence
data=hub task.rows.train=0 => task.rows.train must be positive, not 0
backbone.architecture.num_hidden_layers=0 => must be from 1 to 1000, not 0
backbone=tiny-bart task=xsum backbone.architecture.decoder_layers=1001 => decoder_layers must be from
backbone=minilm backbone.source=foo => unknown backbone.source 'foo'; valid: hub, package, random
backbone=minilm backbone.source=hub => backbone.source=hub with | needs backbone.hub, or backbone.path=DIR
backbone.tokenizer=hub => backbone.source=random with backbone.tokenizer=hub needs backbone.hub
backbone.architecture.model_type=gpt2 => model type 'gpt2' | valid: bart, bert, deberta, | GPT2For
backbone.architecture.model_type=nope => model type 'nope' | valid: bart, bert, deberta, deberta-v2
backbone=auto => backbone=auto needs a model: backbone.path=DIR or backbone.hub=ORG/NAME
method.target_r=-1 => method.target_r must be positive, not -1
method.target_r=9 => method.target_r=9 exceeds method.init_r=4
method=lora method.r=0 => method.r must be positive, not 0
method.alpha=0 => method.alpha must be positive
method.gamma=-1 => method.gamma must be 0 or more
method.gamma=inf => method.gamma must be finite, not inf
method.delta_t=0 => method.delta_t must be positive
method.t_f=-1 => method.t_f must be positive, not -1
method.schedule=absolute => T=6 | t_i=6000 | t_f=22000 | t_i + t_f = 28000 | train.max_steps | method.schedule=scaled
data=local => data=local needs data.dir=DIR | sst2/train.jsonl.gz
data=local data.dir=missing => data.dir=missing: no such folder
data=local data.dir=/etc/passwd => data.dir=/etc/passwd: a file; name its folder
task=custom data=local => data=local needs data.dir=DIR, a folder with train.jsonl, .csv
backbone=deberta-v3-base backbone.path=missing => missing is not a folder with a model
task.stride=4 => task.stride is a setting of family squad, not of sst2 (family glue) | valid: classifier_dropout
task.early_stopping=false => task.early_stopping is a setting of family summarization
train.epochs=inf => train.epochs must be positive and finite, not inf
method=lora method.r=99999999999 => method.r must be at most 2^20, not 99999999999
protocol=released method.schedule=absolute method.t_i=0 method.t_f=1 => method.t_f must be at least 2 with protocol=rel
method=full save=adapter => save=adapter: this method trains the whole backbone
method=houlsby save=merged => save=merged: adapters cannot be merged
task.family=../glue => unknown task.family of 'sst2' '../glue' | valid: glue, squad, summarization
task=squad budget=0.08% task.n_best=null => task.n_best is not set, squad needs a value
XSUM task.num_beams=null => task.num_beams is not set, xsum needs a value
method=peft_lora method.tuner=LoraConfg => unknown method.tuner 'LoraConfg' (did you mean LoraConfig?); valid: AdaLora
method=peft_lora method.tuner=PromptTuningConfig => unknown method.tuner 'PromptTuningConfig'
method=peft_lora method.tuner=AdaLoraConfig => prunes during training, which needs a module: peft_adalora
method=peft_lora +method.options.use_dorra=true => method.options.use_dorra: LoraConfig has no such option | use_dora?
method=peft_lora +method.options.target_modules=[q] => method.options.target_modules: method.targets and
method=peft_lora +method.options.r=3 => method.options.r: LoraConfig has no such option
method=peft_lora +method.options.bias=some => LoraConfig of HF PEFT:
method=peft_lora method.size=rank => unknown method.size 'rank'
method=oft method.r=1 => method 'oft' trains nothing of the backbone at this size
method=oft budget.match=params budget.params=100 => method 'oft' trains nothing of the backbone at this size
method=ia3 +method.r=2 => method.r=2: IA3Config has one size here
method=peft_adalora +method.score=magnitude => method.score: AdaLoRA of HF PEFT has importance only
method=peft_adalora method.beta2=0 => method.beta1 and method.beta2 must be positive
method=peft_adalora method.init_r=2 method.target_r=2 => method.init_r=2: AdaLoRA of HF PEFT needs more than target_r=2
method=peft_adalora method.schedule=absolute => T=6 | T must exceed t_i + t_f
method=peft_adalora budget.match=params budget.params=50 => budget.params must be at least 97
method=lora budget.params=5000 => budget.params=5000 needs budget.match=params
method=lora budget.match=rank => unknown budget.match 'rank'; valid: label, params
method=lora budget=0.6M budget.match=params budget.params=9000 => budget=0.6M and budget.params=9000 both say a size
method=lora budget.match=params method.r=3 => method.r=3 and budget.match=params both choose the size
method=rslora budget.match=params method.r=3 => method.r=3 and budget.match=params both choose the size
budget.match=params method.target_r=3 => method.target_r=3 and budget.match=params both
budget.match=params method.init_r=-2 => method.init_r must be positive, not -2
method=lora budget.match=params budget.params=60 => 60 parameters are too few | budget.params must be at least 64
budget.match=params budget.params=96 => budget.params must be at least 97
method=houlsby budget.match=params budget.params=96 => budget.params must be at least 97
budget.match=params budget.params=5000 method.init_r=1 => method.init_r=1 makes 12 triplets in 12 matrices, fewer
method=lora +method.params=9000 => method.params is not an option of method 'lora'
method.beta1=1 => method.beta1 must be below 1, not 1.0
"""
CASES = [line.split(" => ") for line in WRONG.replace("XSUM", XSUM).strip().splitlines()]


def plan(arguments: str) -> None:
    """Resolves and counts the run with these words."""
    words = arguments.split() if arguments.startswith("task=") else ["task=sst2", *arguments.split()]
    keys = {word.partition("=")[0] for word in words}
    counted(*(word for word in TINY if word.partition("=")[0] not in keys), *words)


@pytest.mark.parametrize(("arguments", "parts"), CASES, ids=[arguments for arguments, _ in CASES])
def test_a_wrong_value_is_one_line(arguments: str, parts: str) -> None:
    with pytest.raises(InputError) as error:
        plan(arguments)
    line = str(error.value)
    assert "\n" not in line
    for part in parts.split(" | "):
        assert part in line


RANK_1 = "method=lora_regu method.r=1"


@pytest.mark.parametrize(
    "words",
    [
        *("", "method=lora_qv", XSUM, "task=squad budget=0.08% task.stride=8"),
        *(RANK_1, f"{RANK_1} protocol=released method.gamma=0"),  # rank 1 has a penalty, or needs none
    ],
)
def test_the_same_without_a_wrong_value_is_a_plan(words: str) -> None:
    plan(words)
