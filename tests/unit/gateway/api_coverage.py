"""How the guard covers every route of the server and every request field that can reach the model (vLLM 0.32).

`test_api_coverage.py` compares these tables with the application that `eco serve` builds, and `test_vllm_surface.py`
the routes with vLLM's source text. Whatever is new fails there, and is written down here once somebody has read
what vLLM does with it.
"""

from enum import Enum


class Way(Enum):
    """Where a route leads."""

    GENERATES = "ends in EngineClient.generate with a prompt of token ids: it and its answer pass through GuardedEngine"
    MEDIA = "ends in EngineClient.generate with audio, which GuardedEngine refuses unless multimodal input is allowed"
    REFUSED = "asks the engine for something that GuardedEngine does not do"
    NO_MODEL = "asks no engine to compute anything"


#: Every route that a guarded server can have, whatever the flags it takes: method or kind, and path.
ROUTES = {
    Way.GENERATES: """
        POST /v1/chat/completions
        POST /v1/chat/completions/batch
        POST /v1/completions
        POST /v1/responses
        POST /v1/messages
        POST /v1/systemone
        POST /generative_scoring
        POST /inference/v1/generate
        POST /invocations
        """,
    Way.MEDIA: """
        POST /v1/audio/transcriptions
        POST /v1/audio/translations
        WEBSOCKET /v1/realtime
        """,
    Way.REFUSED: """
        POST /start_profile
        POST /stop_profile
        POST /scale_elastic_ep
        """,
    Way.NO_MODEL: """
        GET /openapi.json
        GET /docs
        GET /docs/oauth2-redirect
        GET /redoc
        MOUNT /static
        GET /load
        GET /version
        GET /kv_event_sources
        GET /health
        GET /ping
        POST /ping
        GET /metrics
        MOUNT /metrics
        GET /v1/models
        GET /tokenizer_info
        POST /tokenize
        POST /detokenize
        GET /v1/responses/{response_id}
        POST /v1/responses/{response_id}/cancel
        POST /v1/messages/count_tokens
        POST /v1/chat/completions/render
        POST /v1/completions/render
        POST /v1/responses/render
        POST /v1/messages/render
        POST /v1/chat/completions/derender
        POST /v1/completions/derender
        POST /inference/v1/abort_requests
        POST /is_scaling_elastic_ep
        """,
}
WAYS = {route.strip(): way for way, routes in ROUTES.items() for route in routes.strip().splitlines()}

#: Paths that vLLM's source text has and a guarded server never: behind a flag or variable that `eco serve` refuses,
#: on a model that it does not serve, or of a program that it is not.
POOLING = "a model that pools; a generating one has no such task, and GuardedEngine.encode refuses"
ABSENT = {
    "VLLM_SERVER_DEV_MODE": """
        /abort_requests /collective_rpc /finish_weight_update /get_world_size /init_weight_transfer_engine /is_paused
        /is_sleeping /pause /release_kv_cache_memory /reset_encoder_cache /reset_mm_cache /reset_prefix_cache /resume
        /server_info /shutdown_weight_transfer_engine /sleep /start_draft_weight_update /start_weight_update
        /update_weight_version /update_weights /wake_up /weight_checker /weight_info
        """,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "/v1/load_lora_adapter /v1/unload_lora_adapter",
    "--tokens-only": "/abort_requests",
    "--enable-fault-tolerance": "/fault_tolerance/apply /fault_tolerance/status",
    "--data-parallel-multi-port-external-lb": "/ready /readyz",
    POOLING: "/classify /pooling /rerank /score /v1/embeddings /v1/rerank /v1/score /v2/embed /v2/rerank",
    "VLLM_ENABLE_COHERE_API": "/cohere/v2/chat /cohere/v2/chat/render",
}


class Cover(Enum):
    """What a field of a request does, and what is done about it."""

    PROMPT = "decides what the prompt says: the guard sees the prompt that comes of it"
    STEERING = "constrains or pushes what is generated"
    ALTERNATIVES = "shows what else the model might have said, or how likely it finds a text"
    SHAPE = "how much, how varied, in what form"
    REFUSED = "refused by vLLM as eco serve starts it, or by GuardedEngine"
    HARMLESS = "changes nothing of what is generated or shown of it"


_STEERING = """
    logit_bias allowed_token_ids bad_words structured_outputs frequency_penalty presence_penalty repetition_penalty
    stop stop_token_ids ignore_eos min_tokens thinking_token_budget repetition_detection
    """
_SHAPE = """
    n temperature top_p top_k min_p seed watermarking skip_special_tokens spaces_between_special_tokens
    include_stop_str_in_output routed_experts_prompt_start stream_interval
    """
_OPENAI_SHAPE = """
    max_tokens stream stream_options use_beam_search length_penalty return_tokens_as_token_ids return_token_ids
    return_token_offsets
    """
_ALTERNATIVES = "logprobs prompt_logprobs logprob_token_ids"
_TRANSFER = "kv_transfer_params ec_transfer_params"
_MEDIA = "media_io_kwargs mm_processor_kwargs mm_payload return_mm_kwargs"
_ADMINISTRATION = "model user priority request_id session_id cache_salt"
_SPEECH = {  # `file` is refused with the prompt that it is part of, and that covers the words around it too
    Cover.REFUSED: "file",
    Cover.PROMPT: "prompt language hotwords to_language",
    Cover.STEERING: "vllm_xargs frequency_penalty presence_penalty repetition_penalty",
    Cover.SHAPE: """
        response_format n temperature top_p top_k min_p seed watermarking include_stop_str_in_output use_beam_search
        length_penalty stream stream_include_usage stream_continuous_usage_stats max_completion_tokens
        """,
    Cover.HARMLESS: "model",
}
_CHAT: dict[Cover, str] = {
    Cover.PROMPT: """
        messages tools reasoning_effort documents chat_template_kwargs add_generation_prompt continue_final_message
        add_special_tokens truncate_prompt_tokens truncation_side
        """,
    # vllm_xargs goes to the logits processors that the operator has loaded.
    Cover.STEERING: _STEERING + "response_format tools tool_choice parallel_tool_calls vllm_xargs",
    Cover.ALTERNATIVES: _ALTERNATIVES + " top_logprobs echo",
    Cover.SHAPE: _SHAPE + _OPENAI_SHAPE + "max_completion_tokens include_reasoning return_prompt_text",
    Cover.REFUSED: f"{_TRANSFER} {_MEDIA} chat_template",
    Cover.HARMLESS: _ADMINISTRATION,
}

#: Every request model of a route that generates, and vLLM's own types of its fields but for those that only make
#: up the prompt. A field may be in several lines; what the OpenAI package defines counts with the field it is in.
FIELDS: dict[str, dict[Cover, str]] = {
    "ChatCompletionRequest": _CHAT,
    # Turned into a ChatCompletionRequest for each conversation, with whatever else the client has written.
    "BatchChatCompletionRequest": {
        Cover.PROMPT: "messages chat_template_kwargs add_generation_prompt continue_final_message",
        Cover.STEERING: """
            logit_bias structured_outputs response_format tool_choice stop frequency_penalty presence_penalty
            repetition_penalty
            """,
        Cover.ALTERNATIVES: "logprobs top_logprobs logprob_token_ids echo",
        Cover.SHAPE: """
            n temperature top_p top_k min_p seed watermarking max_tokens max_completion_tokens include_reasoning
            include_stop_str_in_output return_tokens_as_token_ids return_token_ids length_penalty
            """,
        Cover.REFUSED: "use_beam_search chat_template media_io_kwargs mm_processor_kwargs",
        Cover.HARMLESS: "model user priority request_id cache_salt best_of early_stopping guided_decoding_backend",
    },
    "CompletionRequest": {
        Cover.PROMPT: "prompt suffix add_special_tokens truncate_prompt_tokens truncation_side",
        Cover.STEERING: _STEERING + "response_format vllm_xargs",
        Cover.ALTERNATIVES: _ALTERNATIVES + " echo",
        Cover.SHAPE: _SHAPE + _OPENAI_SHAPE,
        Cover.REFUSED: f"{_TRANSFER} prompt_embeds",
        Cover.HARMLESS: _ADMINISTRATION + " mm_payload return_mm_kwargs",
    },
    "ResponsesRequest": {
        Cover.PROMPT: """
            input instructions prompt previous_response_id previous_input_messages reasoning tools truncation
            chat_template_kwargs
            """,
        Cover.STEERING: """
            structured_outputs text tools tool_choice parallel_tool_calls logit_bias frequency_penalty
            presence_penalty repetition_penalty stop stop_token_ids ignore_eos vllm_xargs
            """,
        Cover.ALTERNATIVES: "include top_logprobs",
        Cover.SHAPE: """
            max_output_tokens stream temperature top_p top_k min_p seed watermarking skip_special_tokens
            include_stop_str_in_output include_reasoning enable_response_messages
            """,
        Cover.REFUSED: f"{_TRANSFER} {_MEDIA}",
        Cover.HARMLESS: _ADMINISTRATION + " background max_tool_calls metadata service_tier store prompt_cache_key",
    },
    "AnthropicMessagesRequest": {
        Cover.PROMPT: "messages system tools thinking output_config chat_template_kwargs",
        # Messages may add tools, and thinking may be cut short.
        Cover.STEERING: "messages tools tool_choice output_config thinking stop_sequences vllm_xargs",
        Cover.SHAPE: "max_tokens stream temperature top_p top_k watermarking",
        Cover.REFUSED: f"{_TRANSFER} mm_payload return_mm_kwargs",
        Cover.HARMLESS: "model metadata cache_salt",
    },
    "GenerateRequest": {
        Cover.PROMPT: "token_ids",
        Cover.STEERING: "sampling_params reasoning_ended reasoning_parser_kwargs",  # the last two: from where on
        Cover.ALTERNATIVES: "sampling_params",
        Cover.SHAPE: "sampling_params return_token_ids output_mode stream stream_options",
        Cover.REFUSED: f"{_TRANSFER} features content_parts",
        Cover.HARMLESS: "model priority request_id cache_salt token_offsets",
    },
    "GenerativeScoringRequest": {
        Cover.PROMPT: "query items item_first add_special_tokens",
        Cover.ALTERNATIVES: "label_token_ids",
        Cover.SHAPE: "apply_softmax",
        Cover.HARMLESS: "model priority request_id cache_salt",
    },
    "StructuredDecisionRequest": {
        Cover.PROMPT: "state instructions questions chat_template_kwargs",
        Cover.ALTERNATIVES: "questions",
        Cover.REFUSED: "images audio videos",
        Cover.HARMLESS: "model priority request_id cache_salt",
    },
    "QuestionSpec": {Cover.PROMPT: "instructions criteria", Cover.ALTERNATIVES: "type"},
    "TranscriptionRequest": _SPEECH | {Cover.SHAPE: _SPEECH[Cover.SHAPE] + " timestamp_granularities"},
    "TranslationRequest": _SPEECH,
    # What /inference/v1/generate takes whole, and all others fill in.
    "SamplingParams": {
        Cover.STEERING: _STEERING + "extra_args",
        Cover.ALTERNATIVES: _ALTERNATIVES + " prompt_logprob_token_ids prompt_logprob_start flat_logprobs",
        Cover.SHAPE: _SHAPE + "max_tokens detokenize output_kind output_text_buffer_length",
        Cover.REFUSED: "trace_decode_token_ids",  # --enable-trace-replay
        Cover.HARMLESS: "skip_clone skip_reading_prefix_cache",
    },
    "BeamSearchParams": {
        Cover.STEERING: "ignore_eos structured_outputs",  # the latter is not filled in by a route
        Cover.SHAPE: """
            beam_width max_tokens temperature length_penalty include_stop_str_in_output skip_special_tokens watermarking
            """,
    },
    "StructuredOutputsParams": {
        Cover.STEERING: """
            json regex choice grammar json_object structural_tag disable_any_whitespace disable_additional_properties
            whitespace_pattern
            """
    },
    "RepetitionDetectionParams": {Cover.STEERING: "max_pattern_size min_pattern_size min_count"},
    "ReasoningParserKwargs": {Cover.STEERING: "chat_template_kwargs"},
    "StreamOptions": {Cover.SHAPE: "include_usage continuous_usage_stats"},
    "ResponseFormat": {Cover.STEERING: "type json_schema"},
    "JsonSchemaResponseFormat": {Cover.STEERING: "json_schema", Cover.HARMLESS: "name description strict"},
    "StructuralTagResponseFormat": {Cover.STEERING: "type format"},
    "LegacyStructuralTagResponseFormat": {Cover.STEERING: "type structures triggers"},
    "LegacyStructuralTag": {Cover.STEERING: "begin structural_tag_schema end"},
    "ChatCompletionToolsParam": {Cover.PROMPT: "type function defer_loading", Cover.STEERING: "function"},
    "FunctionDefinition": {
        Cover.PROMPT: "name description parameters defer_loading",
        Cover.STEERING: "name parameters strict",
    },
    "ChatCompletionNamedToolChoiceParam": {Cover.STEERING: "type function"},
    "ChatCompletionNamedFunction": {Cover.STEERING: "name"},
    "AnthropicTool": {
        Cover.PROMPT: "name description input_schema defer_loading",
        Cover.STEERING: "name input_schema strict",
    },
    "AnthropicToolChoice": {Cover.STEERING: "type name disable_parallel_tool_use"},
    "AnthropicMessage": {Cover.PROMPT: "role content", Cover.STEERING: "content"},
    "AnthropicContentBlock": {
        Cover.PROMPT: "type text id tool_use_id name input content is_error tool_name thinking data signature tool",
        Cover.STEERING: "tool",
        Cover.REFUSED: "source",
    },
    "AnthropicToolChangeReference": {Cover.PROMPT: "type name", Cover.STEERING: "name"},
    "AnthropicToolChangeDefinition": {Cover.PROMPT: "type definition", Cover.STEERING: "definition"},
    "AnthropicThinkingConfigEnabled": {Cover.STEERING: "type budget_tokens", Cover.HARMLESS: "display"},
    "AnthropicThinkingConfigDisabled": {Cover.PROMPT: "type"},
    "AnthropicThinkingConfigAdaptive": {Cover.HARMLESS: "type display"},
    "AnthropicOutputConfig": {Cover.PROMPT: "effort", Cover.STEERING: "format"},
    "AnthropicJsonOutputFormat": {Cover.STEERING: "type json_schema"},
}
