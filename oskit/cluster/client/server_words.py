"""One table of what the servers' words mean: how far they reach, whether they pass, whose fault, what to do.

OpenSearch, ML Commons, gateways and AWS mean very different things by the same status, so the words decide.
Everything that has to know asks :func:`meaning`; docs/deploying.md and docs/reliability.md hold the table for
people (``make docs`` writes it). The words were seen on OpenSearch 3.6, or stand in the sources.

By :attr:`Meaning.scope` a load tells bad documents (``item``) from a cluster, an index or a model that is
down (``cluster``), and by :attr:`Meaning.passes` whether waiting helps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from oskit.cluster.client.calls import Call, settings_call

Scope = Literal["item", "request", "deployment", "cluster", "node"]
"""What the words are about, and so how far they reach:

* ``item``: one document of a bulk request, and never the others;
* ``request``: the request as it is, such as a query;
* ``deployment``: a model that is being registered or loaded;
* ``cluster``: all that is sent to this cluster, index or model meets the same;
* ``node``: the start of a node on this machine, in whose log they stand.
"""

Passes = Literal["never", "soon", "model"]
"""By itself ``never``, ``soon`` (seconds or minutes), or once the ``model`` is in memory (again)."""

Fault = Literal["document", "request", "model", "cluster", "gateway", "credentials", "configuration"]
"""What has to change; ``configuration`` is a setting, a block or a resource of the cluster or the machine."""

_HEARD: dict[Scope, frozenset[Scope]] = {
    "item": frozenset({"item", "cluster"}),
    "request": frozenset({"request", "cluster"}),
    "deployment": frozenset({"deployment", "request", "cluster"}),
    "node": frozenset({"node"}),
}

HEAP_PAUSE_S = 5.5
"""Least wait after a node's heap was too full for a request. OpenSearch answers that by collecting garbage,
but at most every 5 s (``HierarchyCircuitBreakerService.createOverLimitStrategy``), and until then it refuses
everything."""

PREFIX = "plugins.ml_commons."


def _switch_on(setting: str) -> Call:
    """As :func:`_allow`, also where a pause has switched it off transiently, and was killed."""
    name = PREFIX + setting
    return settings_call({"transient": {name: None}, "persistent": {name: True}})


@dataclass(frozen=True)
class Meaning:
    """A row of the table.

    Attributes:
        words: What is said: ``…`` stands for anything, `` | `` between alternatives, without regard to case;
            empty where the status alone decides.
        scope: What they are about.
        passes: Whether waiting helps.
        fault: Whose it is.
        means: One line for people; the server's own words follow it in messages.
        do: What to do; ``INDEX`` stands for the index's name.
        statuses: HTTP statuses with which the words mean that; empty for any, and for none.
        pause_s: Least wait before another attempt, in seconds.
        spreads: Whether documents that were encoded together with it are told the same.
    """

    words: str
    scope: Scope
    passes: Passes
    fault: Fault
    means: str
    do: str
    statuses: tuple[int, ...] = ()
    pause_s: float = 0.0
    spreads: bool = False

    def found_in(self, text: str) -> re.Match[str] | None:
        """The words in ``text``."""
        pattern = re.escape(self.words).replace(r"\ \|\ ", "|").replace("…", ".*?")
        return re.search(pattern, text, re.IGNORECASE)

    def advice(self, index: str | None = None) -> str | None:
        """What to do, about this index."""
        return (self.do.replace("INDEX", index) if index else self.do) or None


def _allow(setting: str, value: object) -> str:
    return str(settings_call({"persistent": {PREFIX + setting: value}}))


_EXPORT_AGAIN = "Export the encoder again with: oskit export"

NO_INDEX = Meaning("index_not_found_exception", "request", "never", "request", "there is no such index", "")

BEHIND_ALL_HITS = Meaning(
    "Reached end of search result", "request", "never", "request",
    "the page begins behind the last hit of a hybrid search", "Take an earlier page",
)  # fmt: skip

NOT_OFFERED = Meaning(
    "Your request: …is not allowed", "cluster", "never", "configuration",
    "Amazon OpenSearch Service does not offer that", "docs/permissions.md says what works there", (401,)
)  # fmt: skip

ALREADY_THERE = Meaning(
    "resource_already_exists_exception", "request", "never", "request", "it is there already", ""
)

UNDER_WAY = Meaning(
    "Duplicate deploy model task", "deployment", "soon", "cluster",
    "a node is already deploying it, for another command or because the node was restarted",
    "Wait until `oskit models` calls it DEPLOYED; if it never does, `oskit undeploy` it and deploy it again",
)  # fmt: skip

FOREIGN = Meaning(
    "", "cluster", "never", "gateway",
    "the answer is not OpenSearch's JSON, but perhaps a gateway's login page",
    "Check the address in --url, and what stands in front of the cluster", (200,),
)  # fmt: skip

# The first row that fits decides: what quotes a document comes first, what stands for much comes last.
# fmt: off
TABLE: tuple[Meaning, ...] = (
    # A document
    Meaning("mapper_parsing_exception: | strict_dynamic_mapping_exception:", "item", "never", "document",
            "a value does not fit the mapping of its field", ""),
    # That server's own words, which may quote the text.
    Meaning("Error from remote service", "cluster", "soon", "model", "the remote model's server is busy",
            "Send less at once, or give it more room", (429, 502, 503, 504)),
    Meaning("Error from remote service", "cluster", "never", "model", "the remote model's server refuses",
            "Look at that server's log, and at the credential in its connector"),
    Meaning("Limit of total fields", "item", "never", "document",
            "it has fields that the index has no room for",
            "leave out fields, or allow more: "
            'PUT INDEX/_settings {"index.mapping.total_fields.limit": 2000}'),
    Meaning("contains invalid dot usage", "item", "never", "document",
            "a field's name begins or ends with a dot, which the pipeline's processor cannot take apart",
            "rename the field"),
    Meaning("has null, cannot process it", "item", "never", "document",
            "a list of texts that the pipeline encodes holds null", "leave it out"),
    Meaning("Infinite loop in property interpolation | Some parameter placeholder not filled", "item",
            "never", "document", "a text holds ${…}, which the remote model's connector replaces",
            "change that text", spreads=True),
    Meaning("Inconsistency of field data structures…expected 'NONE' | from index options=NONE to", "cluster",
            "never", "configuration",
            "an empty vector was the first of the sparse_vector field, which takes no real one since",
            "Load into a new index: another name, or --recreate"),
    Meaning("Inconsistency of field data structures | to inconsistent index options", "item", "never",
            "document", "its vector is empty, which a sparse_vector field does not take",
            "leave out documents without tokens"),

    # A request
    Meaning("analyzer …not found | failed to find global analyzer", "request", "never", "request",
            "there is no such analyzer", "Use bert-uncased or mbert-uncased"),
    Meaning("maxClauseCount | too_many_clauses", "request", "never", "request",
            "the query has more tokens than a query may have (1,024)", "Use a shorter one"),
    Meaning("weight must be in", "request", "never", "request",
            "a token of the query weighs too much, or nothing",
            "OpenSearch takes query weights above 0 and up to 64"),
    Meaning("Query tokens should be valid integer", "request", "never", "request",
            "the field is keyed by token ids, and the query has token texts, as the cluster asks a model for "
            "when the index is named by an alias or a pattern",
            "Name the index itself, or search with --archive DIR"),
    Meaning("two-phase window size", "request", "never", "request",
            "so many hits are more than the second phase scores", "Ask for fewer, or search in one phase"),
    Meaning("No handler for type [sparse_vector] | [index.sparse]", "request", "never", "request",
            "the cluster has no sparse_vector fields",
            "They need OpenSearch 3.3 or newer with neural-search; use --index-kind rank_features"),
    Meaning("No processor type exists with name [sparse_encoding] | unknown query [neural_sparse]",
            "request", "never", "request", "the cluster lacks the plugin neural-search",
            "Install it on its nodes: GET _cat/plugins"),
    Meaning("no handler found for uri [/_plugins/_ml", "request", "never", "request",
            "the cluster does not know this API",
            "Check the address in --url and that the cluster has opensearch-ml: GET _cat/plugins"),
    Meaning("no handler found for uri", "request", "never", "request", "the cluster does not know this API",
            "Check the address in --url and that the cluster has the plugin it belongs to: GET _cat/plugins"),
    Meaning("find model group", "request", "never", "request", "there is no such model group",
            "Give the group's id or a new name with --group"),
    Meaning("not matching the trusted connector endpoint regex", "request", "never", "configuration",
            "connectors may not call this address",
            f"Append it to {PREFIX}trusted_connector_endpoints_regex, and keep what stands there"),
    NO_INDEX,
    BEHIND_ALL_HITS,
    ALREADY_THERE,

    # A deployment
    UNDER_WAY,
    Meaning("Exceed max local model per node | exceed max…model | exceeds max…model", "deployment", "never",
            "configuration", "a node holds as many models as it may",
            f"Undeploy some (oskit models), or raise the limit: {_allow('max_model_on_node', 20)}"),
    Meaning("exceed max running task limit", "deployment", "soon", "configuration",
            "the node is busy deploying other models", "Try again in a minute"),
    Meaning("version conflict", "deployment", "soon", "cluster",
            "another deployment or undeployment of the model ran at the same time", "Try again"),
    Meaning("already being used by a model group", "deployment", "soon", "cluster",
            "another registration made a group of this name at the same time", "Try again"),
    Meaning("only be called when model is in DEPLOYING state", "deployment", "soon", "cluster",
            "the cluster counted its nodes meanwhile and gave the model another state", "Try again"),
    Meaning("no eligible node found | No eligible worker node", "deployment", "never", "configuration",
            "no node may run the model",
            f"Without a node of the ml role, allow the others: {_allow('only_run_on_ml_node', False)}"),
    Meaning("allow_registering_model_via_local_file", "deployment", "never", "configuration",
            "the cluster takes no uploads", "Allow them with --configure-cluster, or send: "
            + _allow("allow_registering_model_via_local_file", True)),
    Meaning("publish.djl.ai | djl_torch | Failed to download PyTorch native | "
            "Failed to load PyTorch native | UnsatisfiedLinkError | libtorch", "deployment", "never",
            "cluster", "the node cannot load the PyTorch libraries, which ML Commons downloads at the first "
            "deployment",
            "Let the node reach publish.djl.ai once, or put the libraries in place as `oskit node` does"),
    Meaning("Invalid input tensor name", "deployment", "never", "model",
            "the ONNX graph's inputs are not named as ML Commons names them",
            f"They must be input1.input_ids and input1.attention_mask. {_EXPORT_AGAIN} --format onnx"),
    Meaning("Unsupported model IR version | opset | is not a registered function/op", "deployment", "never",
            "model", "the ONNX graph is newer than the cluster's ONNX Runtime (1.16.3 in OpenSearch 3.6)",
            f"{_EXPORT_AGAIN} --format onnx: it writes IR 8 or 9 and an old enough opset"),
    Meaning("ORT_INVALID_PROTOBUF | Protobuf parsing failed", "deployment", "never", "model",
            "the .onnx file is damaged", _EXPORT_AGAIN),
    Meaning("Unknown builtin op | Could not find any similar ops | No such operator | unknown operator",
            "deployment", "never", "model",
            "the TorchScript model uses an operator that the cluster's libtorch lacks",
            f"{_EXPORT_AGAIN} (it traces with eager attention), or use --format onnx"),
    Meaning("PytorchStreamReader | failed finding central directory | unsupported…file format | "
            "Legacy model format", "deployment", "never", "model",
            "the .pt file is damaged, or is not TorchScript", _EXPORT_AGAIN),
    Meaning("forward() Expected | forward() is missing | Expected a value of type | KeyError | "
            "token_type_ids", "deployment", "never", "model",
            "the TorchScript model does not take what ML Commons gives it: one dictionary with input_ids and "
            "attention_mask", _EXPORT_AGAIN),
    Meaning("cannot be cast to class …ModelConfig", "deployment", "never", "model",
            "the model was registered with a model_config, with which a sparse model cannot be deployed",
            "Delete it and deploy the archive with oskit, which registers it without one"),
    Meaning("model content changed | hash value | content hash", "deployment", "never", "model",
            "what the cluster holds is not what was announced: parts of the upload are missing or different",
            "Delete the model and deploy the archive again"),
    Meaning("Tokenizer file not exits | tokenizer.json | Model missing | untagged enum | idf.json | "
            "End of input", "deployment", "never", "model",
            "the archive's tokenizer.json or idf.json is missing or cannot be read", _EXPORT_AGAIN),
    Meaning("found multiple models | .pt file not found | .onnx file not found", "deployment", "never",
            "model", "the archive must hold exactly one model file, of the format it is registered with",
            _EXPORT_AGAIN),
    Meaning("not a ZIP archive", "deployment", "never", "model", "the archive is not a zip file",
            _EXPORT_AGAIN),
    Meaning("used by another model group | you do not have access | don't have permissions | "
            "doesn't have privilege", "deployment", "never", "request",
            "model access control keeps the model's group from you",
            "Use another --name, or a --group that you may write to"),

    # The cluster, an index or a model, whatever is sent
    Meaning("Model not ready", "cluster", "model", "model", "the model is not in memory (yet)",
            "Deploy the model again: oskit models, oskit deploy"),
    Meaning("has been closed already", "cluster", "model", "model",
            "the model was taken out of memory while it encoded",
            "Deploy the model again: oskit models, oskit deploy"),
    Meaning("Local Model is currently disabled", "cluster", "model", "configuration",
            "the cluster runs no models of its own", f"Allow them: {_switch_on('local_model.enabled')}"),
    Meaning("Failed to find model", "cluster", "never", "model", "the model is not there (any more)",
            "See which are: oskit models"),
    Meaning("Memory Circuit Breaker", "cluster", "soon", "configuration", "a node's heap is too full",
            "Undeploy other models, send less at once, give OpenSearch a larger heap, or raise the limit: "
            + _allow("jvm_heap_memory_threshold", 95), pause_s=HEAP_PAUSE_S),
    Meaning("Disk Circuit Breaker", "cluster", "soon", "configuration", "a node has too little free disk",
            f"Free some, or lower the limit: {_allow('disk_free_space_threshold', '1gb')}"),
    Meaning("circuit_breaking_exception | Circuit Breaker is open | Data too large", "cluster", "soon",
            "configuration", "a node is short of memory",
            "Send less at once, free memory on the nodes, or give OpenSearch a larger heap",
            pause_s=HEAP_PAUSE_S),
    Meaning("Failed to Validate Access | Failed to validate model access", "cluster", "soon", "configuration",
            "ML Commons blames the access check, but hides another failure behind it: mostly an open memory "
            "breaker or an index that is not ready",
            "Try again; if it stays, look at the node's log and heap"),
    Meaning("disk usage exceeded | flood-stage", "cluster", "soon", "configuration",
            "a node's disk is full, so the index takes nothing",
            "Free disk space on the nodes; the block goes away by itself"),
    # The disk monitor keeps its verdict for a minute and looks every half a minute; until then it sets a
    # block again that somebody lifts.
    Meaning("create-index blocked", "cluster", "never", "configuration", "no index can be made",
            "Mostly all nodes are short of disk space: free some; then the block goes away by itself within "
            "two minutes, unless somebody has set cluster.blocks.create_index"),
    Meaning("SERVICE_UNAVAILABLE/", "cluster", "soon", "cluster",
            "the cluster has no manager, or reads its state", "Wait; if it stays, look at its nodes' logs"),
    Meaning("index_closed_exception | index closed | index preparing to close", "cluster", "never",
            "configuration", "the index is closed", "Open the index: POST INDEX/_open"),
    Meaning("cluster_block_exception | blocked by:", "cluster", "never", "configuration",
            "a block is in the way", "Lift the block on the index or the cluster first"),
    Meaning("pipeline with id", "cluster", "never", "configuration", "somebody deleted the ingest pipeline",
            "To make it anew, run the command again"),
    Meaning("[sparse_vector] fields should be valid integer", "cluster", "never", "request",
            "the index is named by an alias, for which the pipeline's model is asked for token texts",
            "Name the index itself"),
    # ML Commons answers 500 where the index behind it would answer 503.
    Meaning("No shard available | CurrentState[RECOVERING] | CurrentState[CREATED]", "cluster", "soon",
            "cluster", "an index is being recovered, as after the restart of a node", "Wait"),
    Meaning("Fail to search", "request", "soon", "cluster",
            "ML Commons cannot search its indexes, as after the restart of a node",
            "Wait; if it stays, look at the health of the indexes .plugins-ml-*", (500,)),

    # A remote model
    Meaning("has private ip address", "cluster", "never", "configuration",
            "connectors may not call private addresses",
            f"Undeploy the model, allow them: {_allow('connector.private_ip_enabled', True)}, and deploy it"),
    Meaning("Acquire operation took longer", "cluster", "soon", "model",
            "all connections to the remote model's server are in use",
            "Send less at once, or raise max_connection in its connector"),
    Meaning("Connection refused | Connection reset | connection was closed during the request | "
            "Read timed out", "cluster", "soon", "model", "the remote model's server does not answer",
            "Look at that server, and at the address and the time-outs in its connector"),
    Meaning("Name or service not known", "cluster", "never", "model",
            "the host name of the remote model's server cannot be resolved", "Correct it in the connector"),
    Meaning("The expected inference result is a Map | The inference result should be associated | "
            "Pruned values must be positive | array_index_out_of_bounds_exception: Index | "
            "Invalid JSON format | Remote service returned empty response body", "cluster", "never", "model",
            "the remote model's server does not answer with a list of {token: weight}, one for each text",
            "Correct that server or its connector"),

    # Credentials
    Meaning("security token", "cluster", "never", "credentials", "AWS refuses the signature",
            "The credentials are not valid (any more): log in again", (403,)),
    Meaning("signature expired | signature not yet current | too skewed", "cluster", "never", "credentials",
            "AWS refuses the signature", "Check the clock of this machine", (403,)),
    Meaning("signature …does not match", "cluster", "never", "credentials", "AWS refuses the signature",
            "Check --aws-region and --aws-service, and the secret key", (403,)),
    Meaning("credential should be scoped", "cluster", "never", "credentials", "AWS refuses the signature",
            "Check --aws-region and --aws-service", (403,)),
    Meaning("no permissions for", "cluster", "never", "credentials", "the user lacks a permission",
            "Ask the cluster's administrator for a role with it: docs/permissions.md", (403,)),
    Meaning("is not authorized to perform", "cluster", "never", "credentials", "IAM does not permit it",
            "Attach a policy with that action: docs/permissions.md", (403,)),
    Meaning("403 Forbidden; Forbidden | Forbidden: 403 Forbidden", "cluster", "never", "credentials",
            "Amazon OpenSearch Serverless forbids it", "Look at the collection's data access policy, at its "
            "network policy, and at aoss:APIAccessAll in IAM: docs/permissions.md", (403,)),
    Meaning("Document ID is not supported", "cluster", "never", "configuration",
            "the collection takes no ids of documents", "Take a collection of the type SEARCH"),
    NOT_OFFERED,

    # A gateway, or the cluster's front door
    Meaning("plain HTTP request was sent to HTTPS port", "cluster", "never", "gateway",
            "the cluster expects TLS", "Write https: in --url", (400,)),
    Meaning("SSL certificate", "cluster", "never", "gateway",
            "the cluster wants another client certificate, or one at all",
            "Give --client-cert and --client-key", (400,)),
    FOREIGN,
    Meaning("", "cluster", "never", "gateway", "what answers there sends one to another address",
            "Give the cluster's own address with --url", (301, 302, 303, 307, 308)),
    Meaning("", "cluster", "never", "credentials", "the cluster refuses the user name or password",
            "Set --username (OSKIT_USERNAME) and OSKIT_PASSWORD or --password-file", (401,)),
    Meaning("", "cluster", "never", "credentials", "the cluster forbids it",
            "Ask the cluster's administrator for a role with this permission", (403,)),
    Meaning("", "cluster", "never", "cluster", "the index, its pipeline or its model is gone",
            "Check the name, and the path in --url", (404,)),
    Meaning("", "item", "never", "document", "the document is too large for a request", "", (413,)),
    Meaning("", "request", "never", "request",
            "the request is too large for the cluster or a proxy in front of it",
            "Allow 10 MB: http.max_content_length in OpenSearch, client_max_body_size in nginx", (413,)),
    Meaning("", "cluster", "soon", "cluster", "the cluster is busy",
            "Send less at once, as with --bulk-size and --workers, or wait longer with --retry-for", (429,)),
    Meaning("", "cluster", "soon", "cluster", "the cluster is not available",
            "Try again later, or wait longer with --retry-for", (502, 503, 504)),

    # A node's start
    Meaning("BindHttpException | BindTransportException | Address already in use", "node", "never",
            "configuration", "its port is taken",
            "Leave --port out to get a free one, or stop what listens there"),
    Meaning("Cannot allocate memory | insufficient memory | Could not reserve enough | "
            "OutOfMemoryError: Java heap", "node", "never", "configuration", "there is not enough memory",
            "Free some, or choose another --heap"),
    Meaning("No space left on device | Disk quota exceeded", "node", "never", "configuration",
            "the disk is full", "Free some space"),
    Meaning("failed to obtain node locks | Lock held by another program | LockObtainFailedException", "node",
            "never", "configuration", "another OpenSearch uses the same data folder",
            "Stop it, or choose another --name"),
    Meaning("unknown setting | failed to parse setting | Failed to parse value", "node", "never",
            "configuration", "a setting is wrong", "Correct the settings that were passed"),
    Meaning("Unrecognized VM option | Error occurred during initialization of | "
            "Could not create the Java Virtual", "node", "never", "configuration", "Java refuses its options",
            "Try another JDK by OSKIT_JAVA_HOME, or another --heap"),
    Meaning("AccessDeniedException | Permission denied | Operation not permitted", "node", "never",
            "configuration", "it may not use one of its folders",
            "Choose folders that it may use in OSKIT_CACHE_DIR and OSKIT_STATE_DIR"),
    Meaning("UnsatisfiedLinkError | failed to map segment", "node", "never", "configuration",
            "a native library could not be loaded (is the file system mounted noexec?)",
            "Choose a folder that allows execution in OSKIT_STATE_DIR"),
    Meaning("cannot downgrade a node | cannot upgrade a node", "node", "never", "configuration",
            "its data come from another version of OpenSearch", "Choose another --name"),
)
# fmt: on


def meaning(text: str, status: int | None, scope: Scope) -> Meaning | None:
    """What a server's words mean; None if nobody knows.

    Args:
        text: The words, with the types of errors where there are some.
        status: Of the answer, or of the item in it; None where there is none.
        scope: Of what they were said: an ``item``, a ``request``, a ``deployment`` or a ``node``.
    """
    heard = _HEARD[scope]
    for row in TABLE:
        if row.scope in heard and (not row.statuses or status in row.statuses) and row.found_in(text):
            return row
    return None
