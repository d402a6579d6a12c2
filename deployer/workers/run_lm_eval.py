"""Run one task of lm-evaluation-harness against an OpenAI-compatible endpoint.

Request: {task, local, url, model, limit, max_tokens, scores_prompts, tokenizer: folder | null};
the API key stands in OPENAI_API_KEY. `task` is a name, or the path of a YAML file where `local` is
true; `scores_prompts` says whether the endpoint gives log-probabilities of the prompt. Response:
{items: [{id, score, answer}], metric, filter, kind, subtasks, version, tokens_asked}. Scores are of
the first metric and the first filter that the task lists; a group's are those of all its subtasks.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _protocol import WorkerError, progress, run

MAX_LENGTH = 4096  # tokens; the harness cuts longer prompts of log-likelihood tasks from the left


def main(request):
    if request["local"]:  # data files are named relative to the task's own
        os.chdir(Path(request["task"]).parent)
    progress(note="loading the task")
    tasks, manager = load(request["task"], request["local"])
    kinds = sorted({str(task.OUTPUT_TYPE) for task in tasks})
    check(kinds, request)
    model = endpoint(request, kinds)
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model=model,
        tasks=tasks,
        limit=request["limit"],
        bootstrap_iters=0,
        log_samples=True,
        task_manager=manager,
    )
    metric, kept_filter, items = scores(results)
    return {
        "items": items,
        "metric": metric,
        "filter": kept_filter,
        "kind": ", ".join(kinds),
        "subtasks": sorted(results["samples"]),
        "version": f"lm-eval {importlib.metadata.version('lm-eval')}",
        "tokens_asked": bool(model.tokenized_requests),
    }


def load(name, local):
    """The leaf tasks behind a name or a file, and the manager that knows them."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=not local)  # to read them all takes half a minute
    try:
        return list(manager.load(name)["tasks"].values()), manager
    except KeyError as error:
        raise WorkerError(
            f"the harness knows no task {name!r}", "Its documentation lists the names."
        ) from error
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"the harness cannot load {name}: {str(error).splitlines()[0][:300]}",
            "Its data set must be in reach: on the hub, or in files beside the task's YAML file.",
        ) from error


def check(kinds, request):
    """Refuse, before anything is asked, what this endpoint cannot answer."""
    given = [kind for kind in kinds if kind != "generate_until"]
    if given and not request["scores_prompts"]:
        raise WorkerError(
            f"this task scores given answers ({', '.join(given)}), and the endpoint gives no "
            "log-probabilities of the prompt: vLLM's server has them, llama.cpp's has not",
            "Serve the model with vLLM, or take a task that generates, such as gsm8k.",
        )
    if given and not request["tokenizer"]:
        raise WorkerError(
            "this task scores given answers, and for that the model's tokenizer must be known",
            "Name the bundle instead of an endpoint.",
        )


def endpoint(request, kinds):
    """The harness's own client; it asks by token ids where it must know where a prompt ends."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    by_ids = kinds != ["generate_until"]
    model = LocalCompletionsAPI(
        base_url=f"{request['url']}/v1/completions",
        model=request["model"],
        tokenizer=request["tokenizer"] if by_ids else None,
        tokenizer_backend="huggingface" if by_ids else None,
        tokenized_requests=by_ids,
        add_bos_token=by_ids and begins_with_bos(request["tokenizer"]),
        max_gen_toks=request["max_tokens"],
        max_length=MAX_LENGTH,
        max_retries=1,
        seed=0,
    )
    return counting(model)


def begins_with_bos(folder):
    """Whether the tokenizer puts a token before every text, so that the model expects one."""
    from transformers import AutoTokenizer

    return bool(AutoTokenizer.from_pretrained(folder)("")["input_ids"])


def counting(model):
    """The same client, telling how many of the requests it has been given are answered."""
    state = {"done": 0, "total": None}

    def counted(ask):
        def asked(requests, *args, **kwargs):
            state["total"] = len(requests)
            state["done"] = 0
            return ask(requests, *args, **kwargs)

        return asked

    call = model.model_call

    def answered(*args, **kwargs):
        answer = call(*args, **kwargs)
        state["done"] += 1
        progress(state["done"], state["total"])
        return answer

    model.model_call = answered
    model.generate_until = counted(model.generate_until)
    model.loglikelihood = counted(model.loglikelihood)
    return model


def scores(results):
    """(metric, filter, items) of the first metric and filter; an item's id names its subtask."""
    metric = kept_filter = None
    items = []
    for task, samples in sorted(results["samples"].items()):
        for sample in samples:
            metric = metric or sample["metrics"][0]
            kept_filter = kept_filter or sample["filter"]
            if sample["filter"] != kept_filter:
                continue
            score = sample.get(metric)
            if not isinstance(score, (int, float)):
                raise WorkerError(
                    f"{metric} of {task} is no figure of each single item",
                    "Take a task whose metric is a mean over its items.",
                )
            answer = str(sample["resps"])
            items.append({"id": f"{task}/{sample['doc_id']}", "score": score, "answer": answer})
    if not items:
        raise WorkerError("the task has no items", "Look at its data set.")
    return metric, kept_filter, items


if __name__ == "__main__":
    run(main)
