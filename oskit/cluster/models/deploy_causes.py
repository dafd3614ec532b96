"""Why a deployment failed: ML Commons' words, what they mean, and what to do.

The task of a deployment holds the cause as a JSON string keyed by node id. The patterns were seen on
OpenSearch 3.6 (docs/deploying.md shows how each was provoked) or are in ML Commons' sources.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from oskit.cluster.models.preflight import PREFIX, settings_call


class Cause(NamedTuple):
    """What a failure means.

    Attributes:
        problem: One line for people; the cluster's own words follow it in the message.
        hint: What to do.
        passes: Whether it may go away by itself within seconds.
        setting: Whether a cluster setting or a resource stands in the way, not the model.
        under_way: Whether another deployment of the model runs: it is waited for, however often one looks.
    """

    problem: str
    hint: str
    passes: bool = False
    setting: bool = False
    under_way: bool = False


_EXPORT_AGAIN = "Export the encoder again with: oskit export"

CAUSES: tuple[tuple[str, Cause], ...] = (
    (
        r"Memory Circuit Breaker|\[parent\] Data too large",
        Cause(
            "a node's heap is too full",
            "Undeploy other models, give OpenSearch a larger heap, or raise the limit: "
            + settings_call({f"{PREFIX}jvm_heap_memory_threshold": 95}),
            passes=True,
            setting=True,
        ),
    ),
    (
        r"Disk Circuit Breaker",
        Cause(
            "a node has too little free disk",
            "Free some, or lower the limit: " + settings_call({f"{PREFIX}disk_free_space_threshold": "1gb"}),
            setting=True,
        ),
    ),
    (
        r"Exceed max local model per node|exceeds? max.* model",
        Cause(
            "a node holds as many models as it may",
            "Undeploy some (oskit models), or raise the limit: "
            + settings_call({f"{PREFIX}max_model_on_node": 20}),
            setting=True,
        ),
    ),
    (
        r"exceed max running task limit",
        Cause("the node is busy deploying other models", "Try again in a minute", passes=True, setting=True),
    ),
    (
        r"Duplicate deploy model task",
        Cause(
            "a node is already deploying it, for another command or because the node was restarted",
            "Wait until `oskit models` calls it DEPLOYED; if it never does, `oskit undeploy` it and "
            "deploy it again",
            passes=True,
            under_way=True,
        ),
    ),
    (
        r"version conflict",
        Cause(
            "another deployment or undeployment of the model ran at the same time", "Try again", passes=True
        ),
    ),
    (
        r"only be called when model is in DEPLOYING state",
        Cause(
            "the cluster counted its nodes meanwhile and gave the model another state",
            "Try again",
            passes=True,
        ),
    ),
    (
        r"no eligible node found|No eligible worker node",
        Cause(
            "no node may run the model",
            "Without a node of the ml role, allow the others: "
            + settings_call({f"{PREFIX}only_run_on_ml_node": False}),
            setting=True,
        ),
    ),
    (
        r"allow_registering_model_via_local_file",
        Cause(
            "the cluster takes no uploads",
            "Allow them with --configure-cluster, or send: "
            + settings_call({f"{PREFIX}allow_registering_model_via_local_file": True}),
            setting=True,
        ),
    ),
    (
        r"Local Model is currently disabled",
        Cause(
            "the cluster runs no models of its own",
            "Allow them: " + settings_call({f"{PREFIX}local_model.enabled": True}),
            setting=True,
        ),
    ),
    (
        r"publish\.djl\.ai|djl_torch|Failed to (download|load) PyTorch native|UnsatisfiedLinkError|libtorch",
        Cause(
            "the node cannot load the PyTorch libraries, which ML Commons downloads at the first deployment",
            "Let the node reach publish.djl.ai once, or put the libraries in place as `oskit node` does",
        ),
    ),
    (
        r"Invalid input tensor name",
        Cause(
            "the ONNX graph's inputs are not named as ML Commons names them",
            f"They must be input1.input_ids and input1.attention_mask. {_EXPORT_AGAIN} --format onnx",
        ),
    ),
    (
        r"Unsupported model IR version|Opset \d+ is under development|opset|is not a registered function/op",
        Cause(
            "the ONNX graph is newer than the cluster's ONNX Runtime (1.16.3 in OpenSearch 3.6)",
            f"{_EXPORT_AGAIN} --format onnx: it writes IR 8 or 9 and an old enough opset",
        ),
    ),
    (
        r"ORT_INVALID_PROTOBUF|Protobuf parsing failed",
        Cause("the .onnx file is damaged", _EXPORT_AGAIN),
    ),
    (
        r"Unknown builtin op|Could not find any similar ops|No such operator|unknown operator",
        Cause(
            "the TorchScript model uses an operator that the cluster's libtorch lacks",
            f"{_EXPORT_AGAIN} (it traces with eager attention), or use --format onnx",
        ),
    ),
    (
        r"PytorchStreamReader|failed finding central directory|unsupported.*file format|Legacy model format",
        Cause("the .pt file is damaged, or is not TorchScript", _EXPORT_AGAIN),
    ),
    (
        r"forward\(\) (Expected|is missing|expected)|Expected a value of type|KeyError|token_type_ids",
        Cause(
            "the TorchScript model does not take what ML Commons gives it: one dictionary with input_ids and "
            "attention_mask",
            _EXPORT_AGAIN,
        ),
    ),
    (
        r"cannot be cast to class .*ModelConfig",
        Cause(
            "the model was registered with a model_config, with which a sparse model cannot be deployed",
            "Delete it and deploy the archive with oskit, which registers it without one",
        ),
    ),
    (
        r"model content changed|hash value|content hash",
        Cause(
            "what the cluster holds is not what was announced: parts of the upload are missing or different",
            "Delete the model and deploy the archive again",
        ),
    ),
    (
        r"Tokenizer file not exits|tokenizer\.json|Model missing|untagged enum|idf\.json|End of input",
        Cause("the archive's tokenizer.json or idf.json is missing or cannot be read", _EXPORT_AGAIN),
    ),
    (
        r"found multiple models|\.(pt|onnx) file not found",
        Cause(
            "the archive must hold exactly one model file, of the format it is registered with",
            _EXPORT_AGAIN,
        ),
    ),
    (r"not a ZIP archive", Cause("the archive is not a zip file", _EXPORT_AGAIN)),
    (
        r"used by another model group|you do not have access|don't have permissions|doesn't have privilege",
        Cause(
            "model access control keeps the model's group from you",
            "Use another --name, or a --group that you may write to",
        ),
    ),
    (
        r"Fail(ed)? to find model group",
        Cause("there is no such model group", "Give the group's id or a new name with --group"),
    ),
    (
        r"Failed to Validate Access|Failed to validate model access",
        Cause(
            "ML Commons blames the access check, but hides another failure behind it: mostly an open memory "
            "breaker or an index that is not ready",
            "Try again; if it stays, look at the node's log and heap",
            passes=True,
            setting=True,
        ),
    ),
)

NODE_IS_GONE = Cause("the node that was loading it is gone or was restarted", "Try again", passes=True)

_UNKNOWN = Cause("the cluster could not load it", "The node's log says more")


def node_errors(error: str) -> str:
    """The distinct messages of a task's ``error``, in one line, without the node ids."""
    try:
        by_node = json.loads(error)
    except ValueError:
        by_node = None
    messages = list(dict.fromkeys(map(str, by_node.values()))) if isinstance(by_node, dict) else [error]
    return " ".join("; ".join(messages).split()) or "no reason given"


def cause_of(error: str) -> Cause:
    """What a message of ML Commons means."""
    for pattern, cause in CAUSES:
        if re.search(pattern, error, re.IGNORECASE):
            return cause
    return _UNKNOWN
