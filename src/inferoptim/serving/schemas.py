"""What a client may send. Every field is honoured or refused by name; none is read and dropped.

Fields of the OpenAI API that this server refuses are listed in REFUSED with the reason the client reads; sending null
(the API's word for "not set") is fine everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

MAX_LOGPROBS = 20
MAX_CHOICES = 128
_TokenId = Annotated[int, Field(ge=0, lt=2**31)]

_SHARED_REFUSALS = {
    "metadata": "completions are not stored here",
    "prompt_cache_key": "the prefix cache finds shared prefixes by itself; to keep them apart, use cache_salt",
    "prompt_cache_options": "the prefix cache finds shared prefixes by itself",
    "prompt_cache_retention": "the prefix cache evicts the least recently used blocks; nothing is pinned",
    "safety_identifier": "there is no moderation here; use user",
    "best_of": "choices are not ranked here; use n",
    "suffix": "insertion needs a model trained for it",
}


class Body(BaseModel):
    """Base of every request body: unknown fields are an error, and so are NaN and infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    REFUSED: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, reason in cls.REFUSED.items():
                if data.get(name) is not None:
                    raise PydanticCustomError(
                        "unsupported_field",
                        "{field}: not supported: {reason}",
                        {"field": name, "reason": reason},
                    )
            if any(name in data for name in cls.REFUSED):
                return {name: value for name, value in data.items() if name not in cls.REFUSED}
        return data


class StreamOptions(Body):
    """Options of a streamed answer."""

    REFUSED: ClassVar[dict[str, str]] = {}

    include_usage: bool | None = Field(
        None, description="End with an event that has no choices but the usage."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="Extension. The usage so far in every event: how many tokens an event holds."
    )
    include_obfuscation: Literal[False] | None = Field(
        None, description="Events are never padded here; only false is accepted."
    )


class Generate(Body):
    """Fields that chat and plain completions share."""

    model: str = Field(description="A name that /v1/models lists.")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Choices per prompt.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
        | None
    ) = None
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id, written as a string → what is added to its logit.", max_length=1024
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**64,
        description="Same seed and same parameters, same output; choice i of n uses seed + i.",
    )
    user: str | None = Field(
        None,
        max_length=256,
        description="Who this is for; the tenant in the cost metrics when there are no API keys.",
    )

    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="Extension. 0 = all tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Extension.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Extension.")
    min_tokens: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Extension. No stop before so many tokens."
    )
    ignore_eos: bool | None = Field(None, description="Extension. Go on after the end-of-sequence token.")
    stop_token_ids: Annotated[list[_TokenId], Field(max_length=128)] | None = Field(
        None, description="Extension."
    )
    include_stop_str_in_output: bool | None = Field(None, description="Extension.")
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Extension. Log-probabilities of the prompt's tokens and of the likeliest N.",
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Extension. Prefixes are shared only under the same salt.",
    )
    return_token_ids: bool | None = Field(
        None, description="Extension. The ids of the answer's tokens beside its text."
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="Extension. Deadline, seconds after arrival; the server's own limit still holds.",
    )

    @model_validator(mode="after")
    def _together(self) -> Generate:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self


class CompletionRequest(Generate):
    """Body of POST /v1/completions."""

    REFUSED: ClassVar[dict[str, str]] = _SHARED_REFUSALS

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=256)]
        | Annotated[list[_TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[_TokenId], Field(min_length=1)]], Field(min_length=1, max_length=256)]
    ) = Field(description="Text, token ids, or several of either.")
    echo: bool | None = Field(None, description="Give the prompt back in front of the completion.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = Field(
        None,
        description="Extension. Whether the tokenizer adds its own first token to text prompts; default true.",
    )
    response_format: ResponseFormat | None = Field(None, description="Extension here. See chat completions.")

    @model_validator(mode="after")
    def _echo(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 makes sense only with echo=true")
        if self.echo and self.stream:
            raise ValueError("echo: not supported with stream=true")
        return self


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A call that the model made earlier."""

    name: str
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(Body):
    """A tool call in an assistant's message."""

    id: str
    type: Literal["function"]
    function: FunctionCall


_Content = str | Annotated[list[TextPart], Field(min_length=1)]


class _Message(Body):
    REFUSED: ClassVar[dict[str, str]] = {
        "audio": "this server handles text only",
        "refusal": "refusals are not kept apart from content here",
        "function_call": "deprecated by its API; use tool_calls",
        "prompt_cache_breakpoint": "the prefix cache finds shared prefixes by itself",
    }


class SystemMessage(_Message):
    """Instructions."""

    role: Literal["system", "developer"]
    content: _Content
    name: str | None = Field(None, max_length=64)


class UserMessage(_Message):
    """What a person says."""

    role: Literal["user"]
    content: _Content
    name: str | None = Field(None, max_length=64)


class AssistantMessage(_Message):
    """What the model said, or the tools it called."""

    role: Literal["assistant"]
    content: _Content | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _something(self) -> AssistantMessage:
        if self.content is None and self.tool_calls is None:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(_Message):
    """What a tool answered."""

    role: Literal["tool"]
    content: _Content
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = Field(None, description="Arguments always follow the schema here, strict or not.")


class Tool(Body):
    """One entry of `tools`."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    """The function that must be called."""

    name: str


class NamedToolChoice(Body):
    """A tool_choice that names a function."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A named JSON schema."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(
        None, description="What the format is for; given to the model in front of the conversation."
    )
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="The output always follows the schema here, strict or not.")


class JsonSchemaFormat(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(Generate):
    """Body of POST /v1/chat/completions."""

    REFUSED: ClassVar[dict[str, str]] = {
        **_SHARED_REFUSALS,
        "audio": "this server handles text only",
        "function_call": "deprecated by its API; use tool_choice",
        "functions": "deprecated by its API; use tools",
        "moderation": "there is no moderation here",
        "prediction": "use the server's speculative decoding instead",
        "reasoning_effort": "use chat_template_kwargs, if the model's template knows such a switch",
        "verbosity": "ask for it in a message",
        "web_search_options": "this server does not search the web",
    }

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier.")
    store: Literal[False] | None = Field(
        None, description="Completions are never stored; only false is accepted."
    )
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None, description="Extension. Variables for the model's chat template, such as enable_thinking."
    )

    @model_validator(mode="after")
    def _consistent(self) -> ChatCompletionRequest:
        if self.max_tokens == 0:
            raise ValueError("max_tokens: must be at least 1")
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError("max_tokens: differs from max_completion_tokens; send one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedToolChoice) else None
        if self.tools is None:
            if self.tool_choice not in (None, "none"):
                raise ValueError("tool_choice: only with tools")
            if self.parallel_tool_calls is not None:
                raise ValueError("parallel_tool_calls: only with tools")
        else:
            names = [tool.function.name for tool in self.tools]
            if len(set(names)) < len(names):
                raise ValueError("tools: two functions have the same name")
            if named is not None and named not in names:
                raise ValueError(f"tool_choice: no tool is named {named!r}")
            if (
                self.response_format is not None
                and self.response_format.type != "text"
                and self.tool_choice != "none"
            ):
                raise ValueError("response_format: not together with tools, unless tool_choice is none")
        return self


class TokenizeRequest(Body):
    """Body of POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = Field(None, description="For a prompt; default true.")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give a prompt or messages, one of them")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens: a chat template brings its own special tokens")
        return self


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[_TokenId] = Field(max_length=2**20)


CompletionRequest.model_rebuild()
