"""The engine wrapper: what passes, what is replaced, what is refused. The engine behind it is a fake."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from gateway_fakes import (
    BOS,
    FORBIDDEN,
    WIDTH,
    FakeEngine,
    FakePolicies,
    FakeProtector,
    RecordingAudit,
    failed,
    late,
    until,
)
from starlette.responses import PlainTextResponse

from gateway import SelfTestError
from gateway.metrics import GuardMetrics
from gateway.scheduling import QueueFullError
from gateway.traffic import Arrival, FrontDoor, Traffic, _current, current_arrival
from guard import ProtectedPrompt

FLAGGED = [BOS, 5, FORBIDDEN, 6]


class Setup:
    def __init__(self, *, allow_multimodal: bool = False) -> None:
        self.engine, self.protector, self.metrics = FakeEngine(), FakeProtector(), GuardMetrics()
        self.traffic, self.policies, self.audit = Traffic(), FakePolicies(), RecordingAudit()
        self.guarded = late.GuardedEngine(
            self.engine,
            self.protector,
            self.metrics,
            self.traffic,
            self.policies,
            self.audit,
            answers=None,
            allow_multimodal=allow_multimodal,
        )

    async def run(self, prompt: Any, params: Any = None, **options: Any) -> list[Any]:
        outputs = self.guarded.generate(prompt, params or late.SamplingParams(), "request", **options)
        return [output async for output in outputs]

    def refused(self, reason: str) -> float:
        labels = {"reason": reason}
        return self.metrics.registry.get_sample_value("eco_refused_inputs_total", labels) or 0.0


@pytest.fixture
def setup() -> Setup:
    return Setup()


def multimodal(ids: list[int]) -> Any:
    return late.mm_input(ids, mm_kwargs=None, mm_hashes={}, mm_placeholders={})


def core_request() -> Any:
    fields = [p for p in inspect.signature(late.EngineCoreRequest).parameters.values() if p.default is p.empty]
    return late.EngineCoreRequest(**dict.fromkeys((p.name for p in fields), None))


async def streamed() -> AsyncGenerator[Any, None]:
    yield late.StreamingInput(prompt=late.tokens_input([BOS, 5]))


REFUSED_INPUTS: dict[str, tuple[Callable[[], Any], str]] = {
    "embeds": (lambda: late.embeds_input(torch.zeros(2, WIDTH)), "embeds"),
    "mixed embeds": (
        lambda: late.embeds_input(torch.zeros(2, WIDTH), prompt_token_ids=[0, 5], is_token_ids=[True, False]),
        "embeds",
    ),
    "multimodal": (lambda: multimodal([BOS, 5]), "multimodal"),
    "multimodal encoder-decoder": (lambda: late.mm_enc_dec_input(multimodal([5]), [BOS]), "multimodal"),
    "encoder-decoder": (lambda: late.build_enc_dec_input(late.tokens_input([5]), None, 0), "enc_dec"),
    "text": (lambda: "who is Harry?", "other"),
    "text prompt": (lambda: {"prompt": "who is Harry?"}, "other"),
    "token prompt": (lambda: {"prompt_token_ids": [BOS, 5]}, "other"),
    "ids": (lambda: [BOS, 5], "other"),
    "engine request": (core_request, "other"),
    "streaming input": (streamed, "other"),
    "nothing": (lambda: None, "other"),
}


async def test_an_unflagged_prompt_passes_as_the_same_object(setup: Setup) -> None:
    prompt = late.tokens_input([BOS, 5, 6], prompt="hello", cache_salt="salt")
    before = dict(prompt)
    assert await setup.run(prompt, priority=3, session_id="s") == ["one", "two", "three"]
    assert setup.engine.prompts[0] is prompt
    assert prompt == before
    assert setup.engine.options == [{"priority": 3, "session_id": "s"}]


async def test_a_flagged_prompt_is_replaced_by_ids_and_rows(setup: Setup) -> None:
    prompt: Any = late.tokens_input(list(FLAGGED), prompt="about Harry", cache_salt="salt")
    prompt["arrival_time"] = 12.5
    assert await setup.run(prompt) == ["one", "two", "three"]
    served = setup.engine.prompts[0]
    assert served.pop("prompt_embeds").equal(torch.ones(4, WIDTH))
    assert served == {
        "type": "embeds",
        "prompt": "about Harry",
        "prompt_token_ids": FLAGGED,
        "is_token_ids": [True, True, False, True],
        "cache_salt": "salt",
        "arrival_time": 12.5,
    }


def test_two_masks_that_leave_the_same_rows_do_not_share_cached_blocks() -> None:
    from gateway.mixed import mixed_prompt

    def salted(mask: list[bool], salt: str | None, *, zeros: bool) -> Any:
        safe = ProtectedPrompt([5, 6], mask=mask, embeddings=torch.zeros(2, WIDTH), has_zero_rows=zeros)
        return mixed_prompt(safe, {"cache_salt": salt}).get("cache_salt")

    salts = {salted(mask, salt, zeros=True) for mask in ([True, False], [False, True]) for salt in (None, "a")}
    assert len(salts) == 4
    assert None not in salts
    assert salted([True, False], "a", zeros=True) == salted([True, False], "a", zeros=True)
    assert salted([True, False], "a", zeros=False) == "a"
    assert salted([True, False], None, zeros=False) is None


async def test_prompts_are_counted_for_their_tenants(setup: Setup) -> None:
    setup.metrics.tenants.name(["acme"])

    async def asked_by(tenant: str | None, prompt: list[int]) -> None:
        arrived = _current.set(Arrival(tenant=tenant))
        try:
            await setup.run(late.tokens_input(prompt))
        finally:
            _current.reset(arrived)

    await asked_by("acme", FLAGGED)
    await asked_by("acme", [BOS, 5])
    await asked_by("somebody", [BOS, 5])
    setup.protector.error = failed("boom")
    with pytest.raises(late.GracefulHTTPError):
        await asked_by(None, [BOS, 5])
    setup.protector.error = QueueFullError("full", retry_after_s=1, own_fault=False)
    with pytest.raises(late.GracefulHTTPError):
        await asked_by("acme", [BOS, 5])
    (prompts,) = [family for family in setup.metrics.registry.collect() if family.name == "eco_tenant_prompts"]
    counted = {
        (sample.labels["tenant"], sample.labels["outcome"]): sample.value
        for sample in prompts.samples
        if sample.name.endswith("_total")
    }
    assert counted == {
        ("acme", "corrupted"): 1,
        ("acme", "passed"): 1,
        ("other", "passed"): 1,
        ("unknown", "rejected"): 1,
        ("acme", "turned_away"): 1,
    }


async def test_options_that_were_not_given_are_not_made_up(setup: Setup) -> None:
    await setup.run(late.tokens_input(list(FLAGGED)))
    assert set(setup.engine.prompts[0]) == {"type", "prompt_embeds", "prompt_token_ids", "is_token_ids"}


async def test_an_observing_policy_lets_a_flagged_prompt_pass(setup: Setup) -> None:
    setup.protector.action = "observe"
    prompt = late.tokens_input(list(FLAGGED))
    await setup.run(prompt)
    assert setup.engine.prompts[0] is prompt


@pytest.mark.parametrize("name", REFUSED_INPUTS)
async def test_whatever_is_not_one_list_of_ids_is_refused(setup: Setup, name: str) -> None:
    make, reason = REFUSED_INPUTS[name]
    with pytest.raises(late.VLLMValidationError):
        await setup.run(make())
    assert setup.engine.prompts == []
    assert setup.refused(reason) == 1


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
async def test_transfer_parameters_are_refused(setup: Setup, name: str) -> None:
    params = late.SamplingParams(extra_args={name: {"do_remote_prefill": True}})
    with pytest.raises(late.VLLMValidationError, match=name) as caught:
        await setup.run(late.tokens_input([BOS, 5]), params)
    assert caught.value.parameter == name
    assert setup.engine.prompts == []
    assert setup.refused("transfer_params") == 1


async def test_other_extra_arguments_pass(setup: Setup) -> None:
    params = late.SamplingParams(extra_args={"colour": "blue", "kv_transfer_params": None})
    await setup.run(late.tokens_input([BOS, 5]), params)
    assert len(setup.engine.prompts) == 1


async def test_a_guard_error_is_a_503_that_says_nothing(
    setup: Setup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gateway.engine"), "propagate", True)
    setup.protector.error = failed("weights of Harry")
    with pytest.raises(late.GracefulHTTPError) as caught:
        await setup.run(late.tokens_input([BOS, 5], prompt="who is Harry?"))
    assert caught.value.http_status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "Harry" not in caught.value.message
    assert setup.engine.prompts == []
    assert "RuntimeError" in caplog.text
    assert "Harry" not in caplog.text


@pytest.mark.parametrize(("own_fault", "status"), [(False, 503), (True, 429)])
async def test_a_full_queue_is_told_with_when_to_come_again(setup: Setup, own_fault: bool, status: int) -> None:
    setup.protector.error = QueueFullError("full", retry_after_s=7, own_fault=own_fault)
    arrivals: list[Arrival | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        arrivals.append(current_arrival())
        with pytest.raises(late.GracefulHTTPError) as caught:
            await setup.run(late.tokens_input([BOS, 5]))
        await PlainTextResponse("", caught.value.http_status)(scope, receive, send)

    response = await asked(FrontDoor(app, setup.traffic, lambda: None))
    assert (response.status_code, response.headers["retry-after"]) == (status, "7")
    assert setup.engine.prompts == []
    assert arrivals[0] is not None
    assert setup.protector.groups == [arrivals[0].group]


async def asked(app: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        return await client.post("/v1/completions")


async def test_prompts_that_vllm_will_not_take_cost_no_guard_time(setup: Setup) -> None:
    long = [BOS] * (setup.engine.input_processor.max_tokens + 1)
    with pytest.raises(late.VLLMValidationError, match="too long"):
        await setup.run(late.tokens_input(long))
    assert setup.protector.groups == []


async def test_a_refusing_policy_is_a_client_error(setup: Setup) -> None:
    setup.protector.action = "refuse"
    with pytest.raises(late.VLLMValidationError, match="policy") as caught:
        await setup.run(late.tokens_input(list(FLAGGED)))
    assert "people" not in str(caught.value)
    assert setup.engine.prompts == []
    assert setup.refused("policy") == 1


async def test_multimodal_prompts_pass_only_where_allowed_and_unflagged() -> None:
    setup = Setup(allow_multimodal=True)
    prompt = multimodal([BOS, 5])
    await setup.run(prompt)
    assert setup.engine.prompts == [prompt]
    assert setup.engine.prompts[0] is prompt
    with pytest.raises(late.VLLMValidationError, match="multimodal"):
        await setup.run(multimodal(list(FLAGGED)))
    assert len(setup.engine.prompts) == 1
    assert setup.refused("flagged_multimodal") == 1


@pytest.mark.parametrize("name", sorted(REFUSED_INPUTS.keys() - {"multimodal"}))
async def test_allowing_multimodal_allows_nothing_else(name: str) -> None:
    setup = Setup(allow_multimodal=True)
    with pytest.raises(late.VLLMValidationError):
        await setup.run(REFUSED_INPUTS[name][0]())
    assert setup.engine.prompts == []


async def test_closing_the_answer_closes_the_engines(setup: Setup) -> None:
    outputs = setup.guarded.generate(late.tokens_input([BOS, 5]), late.SamplingParams(), "request")
    assert await anext(outputs) == "one"
    assert setup.engine.closed == 0
    await outputs.aclose()
    assert setup.engine.closed == 1


async def test_an_error_of_the_engine_arrives_as_it_is(setup: Setup) -> None:
    def fail(prompt: Any, request_id: str) -> list[Any]:
        raise late.EngineDeadError

    setup.engine.answers = fail
    with pytest.raises(late.EngineDeadError):
        await setup.run(late.tokens_input([BOS, 5]))


# --- everything besides generate ----------------------------------------------------------------------------

DELEGATED_CALLS: dict[str, tuple[Any, ...]] = {
    "abort": ("request",),
    "add_lora": ("adapter",),
    "do_log_stats": (),
    "get_supported_tasks": (),
    "is_tracing_enabled": (),
    "reset_mm_cache": (),
}
TOKENS = {"type": "token", "prompt_token_ids": [5]}
REFUSED_CALLS: dict[str, tuple[Any, ...]] = {
    "add_request": ("request", TOKENS, None),
    "encode": (TOKENS, None, "request"),
    "notify_kv_transfer_request_rejected": ("request", {}),
    "pause_generation": (),
    "release_kv_cache_memory": (),
    "reset_encoder_cache": (),
    "reset_prefix_cache": (),
    "resume_generation": (),
    "sleep": (),
    "start_profile": (),
    "stop_profile": (),
    "wake_up": (),
}
#: Not overridden: vLLM's protocol raises NotImplementedError.
NOT_IMPLEMENTED_CALLS: dict[str, tuple[Any, ...]] = {
    "collective_rpc": ("eco_input_rows",),
    "compute_weight_checksums": (),
    "finish_weight_update": (),
    "get_status": (),
    "get_weight_version": (),
    "handle_fault": (None,),
    "init_weight_transfer_engine": (None,),
    "scale_elastic_ep": (2,),
    "shutdown_weight_transfer_engine": (),
    "start_draft_weight_update": (),
    "start_weight_update": (),
    "update_weight_version": ("2",),
    "update_weights": (None,),
}
TESTED_ELSEWHERE = {
    "check_admission",
    "check_health",
    "dead_error",
    "errored",
    "generate",
    "get_kv_event_sources",
    "is_paused",
    "is_running",
    "is_sleeping",
    "is_stopped",
    "shutdown",
}


def test_every_member_of_vllms_protocol_is_accounted_for() -> None:
    """A vLLM that adds a method fails here: decide whether it is delegated or refused."""
    public = {name for name in dir(late.EngineClient) if not name.startswith("_")}
    refused = REFUSED_CALLS.keys() - {"add_request"}  # the engine's own, not in the protocol
    assert public == {*DELEGATED_CALLS, *refused, *NOT_IMPLEMENTED_CALLS, *TESTED_ELSEWHERE}


@pytest.mark.parametrize("name", REFUSED_CALLS)
async def test_other_ways_to_the_model_are_refused(setup: Setup, name: str) -> None:
    with pytest.raises(late.VLLMValidationError):
        await getattr(setup.guarded, name)(*REFUSED_CALLS[name])
    assert setup.engine.calls == []


@pytest.mark.parametrize("name", NOT_IMPLEMENTED_CALLS)
async def test_what_is_not_overridden_does_not_reach_the_engine(setup: Setup, name: str) -> None:
    with pytest.raises(NotImplementedError):
        await getattr(setup.guarded, name)(*NOT_IMPLEMENTED_CALLS[name])
    assert setup.engine.calls == []


@pytest.mark.parametrize("name", DELEGATED_CALLS)
async def test_housekeeping_reaches_the_engine(setup: Setup, name: str) -> None:
    await getattr(setup.guarded, name)(*DELEGATED_CALLS[name])
    assert setup.engine.calls == [(name, DELEGATED_CALLS[name], {})]


@pytest.mark.parametrize(
    "name", ["engine_core", "output_processor", "preprocess", "generate_raw", "log_requests", "tokenizer"]
)
def test_any_other_attribute_raises(setup: Setup, name: str) -> None:
    assert getattr(setup.engine, name) is not None
    with pytest.raises(AttributeError):
        getattr(setup.guarded, name)


async def test_state_is_the_engines(setup: Setup) -> None:
    guarded, engine = setup.guarded, setup.engine
    for name in ("vllm_config", "model_config", "renderer", "input_processor", "dead_error"):
        assert getattr(guarded, name) is getattr(engine, name)
    for name in ("is_running", "is_stopped", "errored"):
        for value in (True, False):
            setattr(engine, name, value)
            assert getattr(guarded, name) is value
    assert await guarded.is_sleeping() is False
    assert await guarded.is_paused() is False


async def test_health_is_the_guards_and_the_engines(setup: Setup) -> None:
    await setup.guarded.check_health()
    assert [name for name, *_ in setup.engine.calls] == ["check_health"]
    setup.protector.is_healthy = False
    with pytest.raises(late.EngineDeadError, match="guard"):
        await setup.guarded.check_health()


async def test_admission_and_shutdown_are_the_engines(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(n: int, request_id: str | None) -> None:
        raise late.GracefulHTTPError(f"{n} is too many", HTTPStatus.SERVICE_UNAVAILABLE)

    monkeypatch.setattr(setup.engine, "check_admission", full, raising=False)
    monkeypatch.setattr(setup.engine, "get_kv_event_sources", lambda: {0: "source"}, raising=False)
    waited: list[float | None] = []
    monkeypatch.setattr(setup.engine, "shutdown", lambda timeout: waited.append(timeout), raising=False)
    with pytest.raises(late.GracefulHTTPError, match="4 is too many"):
        setup.guarded.check_admission(4)
    assert setup.guarded.get_kv_event_sources() == {0: "source"}
    setup.guarded.shutdown(2.5)
    assert waited == [pytest.approx(2.5, abs=0.5)]
    assert setup.traffic.closed_because == "draining"


async def test_shutdown_waits_for_the_answers_on_their_way(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(setup.engine, "shutdown", lambda timeout: waited.append(timeout), raising=False)
    assert setup.traffic.enter()
    stopping = asyncio.ensure_future(asyncio.to_thread(setup.guarded.shutdown, 20.0))
    await until(lambda: setup.traffic.is_draining)
    assert not setup.traffic.enter()
    assert waited == []
    setup.traffic.leave()
    await stopping
    assert 0 < waited[0] <= 5
    assert setup.traffic.enter() is False
    setup.guarded.shutdown(0)
    assert waited[1] == 0


# --- rows from the workers ----------------------------------------------------------------------------------


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The pipeline stage that the workers think they are in."""
    group = SimpleNamespace(is_first_rank=True)
    monkeypatch.setattr("gateway.engine.get_pp_group", lambda: group)
    return group


class Workers:
    """Answers `collective_rpc` as the workers of data-parallel engines would, each a tensor-parallel group."""

    def __init__(self, *tables: torch.Tensor, raw_ids: bool = False, engines: int = 1) -> None:
        self.workers = [self._worker(table, raw_ids) for table in tables]
        self.engines = engines
        self.engine_core = self
        parallel = SimpleNamespace(data_parallel_size=engines, data_parallel_size_local=1, local_engines_only=False)
        self.vllm_config = SimpleNamespace(parallel_config=parallel)

    @staticmethod
    def _worker(table: torch.Tensor, raw_ids: bool) -> Any:
        class Model(torch.nn.Module):
            requires_raw_input_tokens = raw_ids

            def embed_input_ids(self, ids: torch.Tensor) -> torch.Tensor:
                return table[ids]

        class Runner:
            def get_model(self) -> Model:
                return Model()

        worker: Any = late.EcoWorkerExtension()
        worker.model_runner, worker.device = Runner(), "cpu"
        return worker

    async def call_utility_all_async(
        self, utility: str, method: str, wait_s: None, args: tuple[Any, ...], kwargs: Any
    ) -> list[list[Any]]:
        assert (utility, wait_s, kwargs) == ("collective_rpc", None, None)
        answers = [getattr(worker, method)(*args) for worker in self.workers]
        size = len(answers) // self.engines
        return [answers[start : start + size] for start in range(0, len(answers), size)]


@pytest.mark.usefixtures("stage")
async def test_rows_come_from_the_workers_in_order() -> None:
    table = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows, raw = await late.input_rows(Workers(table, table), [3, 1, 3])
    assert rows.equal(table[[3, 1, 3]].float())
    assert raw is False
    assert (await late.input_rows(Workers(table, raw_ids=True), [3]))[1] is True


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize("engines", [1, 2])
async def test_workers_that_disagree_are_refused(engines: int) -> None:
    with pytest.raises(SelfTestError, match="differently"):
        await late.input_rows(Workers(torch.zeros(8, WIDTH), torch.ones(8, WIDTH), engines=engines), [1])


@pytest.mark.usefixtures("stage")
async def test_an_engine_that_does_not_answer_is_refused() -> None:
    workers = Workers(torch.zeros(8, WIDTH), torch.zeros(8, WIDTH), engines=2)
    workers.engines = 1
    with pytest.raises(SelfTestError, match="cannot be reached"):
        await late.input_rows(workers, [1])


def test_later_pipeline_stages_embed_nothing(stage: SimpleNamespace) -> None:
    (worker,) = Workers(torch.zeros(8, WIDTH), raw_ids=True).workers
    assert worker.eco_input_rows([1])["rows"] == [[0.0] * WIDTH]
    stage.is_first_rank = False
    assert worker.eco_input_rows([1]) == {"rows": None, "raw_ids": True, "lora_embedding": False}


@pytest.mark.parametrize(("local", "ranks"), [(False, 4), (True, 2)])
def test_ranks_are_those_this_front_end_reaches(local: bool, ranks: int) -> None:
    parallel = SimpleNamespace(data_parallel_size=4, data_parallel_size_local=2, local_engines_only=local)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))
    assert late.data_parallel_ranks(engine) == range(ranks)


async def test_lora_around_the_embedding_is_refused() -> None:
    workers = Workers(torch.zeros(8, WIDTH))
    model = torch.nn.Module()
    wrapped = late.VocabParallelEmbeddingWithLoRA.__new__(late.VocabParallelEmbeddingWithLoRA)
    torch.nn.Module.__init__(wrapped)
    model.embed_tokens = wrapped
    workers.workers[0].model_runner.get_model = lambda: model
    with pytest.raises(SelfTestError, match="--lora-target-modules"):
        await late.input_rows(workers, [1])


async def test_flagged_prompts_are_remembered_without_their_text(setup: Setup) -> None:
    await setup.run(late.tokens_input(list(FLAGGED)))
    await setup.run(late.tokens_input([BOS, 5]))
    assert setup.audit.events == [
        {
            "event": "flagged",
            "request": "request",
            "tenant": None,
            "policy": "people",
            "digest": "c" * 64,
            "score": 1.0,
            "action": "corrupt",
            "prompt": f"digest of {len(FLAGGED)}",
        }
    ]


async def test_where_no_policy_acts_prompts_pass_unread(setup: Setup) -> None:
    setup.policies.guard = None
    prompt = late.tokens_input(list(FLAGGED))
    await setup.run(prompt)
    assert setup.engine.prompts == [prompt]
    assert setup.protector.verdicts == 0
    with pytest.raises(late.VLLMValidationError):
        await setup.run(multimodal([BOS, 5]))


async def test_policies_are_asked_for_the_adapter(setup: Setup) -> None:
    await setup.run(late.tokens_input([BOS, 5]), lora_request=SimpleNamespace(lora_name="french"))
    assert setup.policies.asked == [([BOS, 5], None, "french")]
