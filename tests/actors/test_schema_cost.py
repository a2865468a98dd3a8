"""Schemas that would keep a validator busy for ever are refused by a count; those that people write are not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, WithJsonSchema, create_model

from cuebook.actors import Agent, Run, handler, saga
from cuebook.actors.orchestrator.state import TaskState
from cuebook.actors.schema_cost import MAX_CHECKS, SchemaCost, _places
from cuebook.actors.schemas import compile_schema, find_error
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import AgentRegistered, AnswerRefused, HandlerSpec, StepAnswered, StepAsked
from tests.actors.theatre import Theatre

TOO_COSTLY = "the schema is too costly"
DEEPEST = 18


def doubling(keyword: str, times: int = 60) -> dict[str, Any]:
    """Definitions that each apply the one before twice."""
    definitions: dict[str, Any] = {"a0": {"type": "integer"}}
    for n in range(1, times + 1):
        before = {"$ref": f"#/$defs/a{n - 1}"}
        definitions[f"a{n}"] = {
            "allOf": {"allOf": [before, before]},
            "anyOf": {"anyOf": [before, before]},
            "oneOf": {"oneOf": [before, before]},
            "not": {"not": {"allOf": [before, before]}},
            "if": {"if": before, "then": before, "else": before},
            "dependentSchemas": {"dependentSchemas": {"a": before, "b": before}},
            "siblings": {**before, "allOf": [before]},
            "unevaluated": {**before, "unevaluatedProperties": False},
        }[keyword]
    return {"$defs": definitions, "$ref": f"#/$defs/a{times}"}


@pytest.mark.parametrize(
    "keyword", ["allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "siblings", "unevaluated"]
)
def test_definitions_that_double_are_refused(keyword: str) -> None:
    with pytest.raises(ConfigurationError, match=TOO_COSTLY):
        compile_schema(doubling(keyword))
    compile_schema(doubling(keyword, 3))


def nested(depth: int, inner: Any = "x") -> Any:
    for _ in range(depth):
        inner = {"x": inner}
    return inner


def test_branches_that_both_go_into_the_same_data_are_refused_for_the_data_that_is_too_deep() -> None:
    branch = {"type": "object", "properties": {"x": {"$ref": "#"}}}
    schema = {"anyOf": [branch] * 4}
    assert find_error(schema, nested(3, {})) == ""
    assert "is not valid under any" in find_error(schema, nested(3))
    assert find_error(schema, nested(DEEPEST)).startswith(TOO_COSTLY)


def test_what_refers_to_itself_without_going_into_the_data_is_refused() -> None:
    for schema in ({"$ref": "#"}, {"allOf": [{"anyOf": [{"$ref": "#"}]}]}):
        assert "refers to itself" in find_error(schema, 1)
    inside = {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}}
    assert find_error(inside, {"y": 1}) == ""
    assert "refers to itself" in find_error(inside, {"x": 1})


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ({"items": {"enum": [{"v": n} for n in range(4_000)]}}, [{"v": 3_999}] * 4_000),
        ({"allOf": [{"uniqueItems": True}] * 2_000}, [[n] for n in range(20_000)]),
        ({"pattern": "((a{100}){100})"}, "a" * 200_000),
        ({"allOf": [{"pattern": "a{50}$"}] * 350}, "a" * 200_000),
        ({"patternProperties": {"(a{90}){90}": {}}}, {f"{n}" + "a" * 60: 1 for n in range(4_000)}),
        ({"propertyNames": {"allOf": [{"pattern": "a{50}$"}] * 350}}, {f"{n}" + "a" * 60: 1 for n in range(4_000)}),
        ({"items": {"allOf": [{"minimum": n} for n in range(4_000)]}}, [5_000] * 4_000),
    ],
)
def test_checks_that_each_look_at_much_are_counted_in_full(schema: Any, data: Any) -> None:
    assert find_error(schema, data).startswith(TOO_COSTLY)


def test_patterns_that_would_fill_the_memory_are_refused() -> None:
    many = {"allOf": [{"pattern": f"x{n}(a{{1000}}){{10}}"} for n in range(1_000)]}
    with pytest.raises(ConfigurationError, match="places"):
        compile_schema(many)


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("abc", 3),
        ("^[A-Z]{3}-[0-9]+$", 8),
        ("(ab){3}", 6),
        ("((a{10}){10}){10}", 1000),
        ("a{2,30}b{4,}", 34),
        (r"\p{L}{5}\d{2}\{3}", 10),
        ("[]{9}]{2}", 2),
        ("[[:alpha:]{9}]{2}", 2),
        ("a{x}", 4),
        ("(((", 0),
        (")){5}", 6),
    ],
)
def test_repetitions_of_a_pattern_are_written_out(pattern: str, places: int) -> None:
    assert _places(pattern) == places


def test_a_mistake_among_too_many_alternatives_is_told_without_its_details() -> None:
    wide = {"anyOf": [{"maxItems": n} for n in range(1_000)]}
    assert find_error(wide, ["x" * 10] * 4_000) == (
        "it does not fit the schema, and there are too many ways in which it does not"
    )
    assert "[1,2,3" in find_error({"anyOf": [{"maxItems": 1}, {"maxItems": 2}]}, [1, 2, 3])
    deep = doubling("anyOf", 15)
    assert find_error(deep, "x").endswith("too many ways in which it does not")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$dynamicRef": "#x"}, "has \\$dynamicRef"),
        ({"$recursiveRef": "#"}, "has \\$recursiveRef"),
        ({"properties": {"a": {"$id": "urn:x", "$ref": "#/$defs/z"}}}, "an \\$id of its own"),
        ({"$ref": "#/$defs/none"}, "nothing at #/\\$defs/none"),
        ({"$ref": "#none"}, "no anchor 'none'"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "are not followed"),
    ],
)
def test_references_that_cannot_be_counted_are_refused(schema: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        compile_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$id": "urn:it", "$ref": "urn:it#/$defs/n", "$defs": {"n": {"type": "integer"}}},
        {"$ref": "#it", "$defs": {"n": {"$anchor": "it", "type": "integer"}}},
        {"$ref": "#/$defs/a%20b~1c~0", "$defs": {"a b/c~": {"type": "integer"}}},
        {"allOf": [{"$ref": "#/examples/1"}], "examples": [0, {"type": "integer"}]},
    ],
)
def test_references_within_a_schema_are_followed_as_the_validator_does(schema: Any) -> None:
    assert find_error(schema, 3) == ""
    assert find_error(schema, "x") == '"x" is not of type "integer"'


# --- where they come from ---


@saga()
async def quiet(run: Run, word: str) -> str:
    return await run.wait_for("never", str)


def test_a_registration_whose_schema_is_too_costly_gets_its_tasks_rejected() -> None:
    play = Theatre([], [], {})
    director = play.hire()
    spec = HandlerSpec(input_schema=doubling("anyOf"), output_schema=doubling("allOf"))
    play.book.write("play.agent.mill.i9.registered", AgentRegistered(slots=1, handlers={"grind": spec}))
    play.ask("mill", "t", {"n": 1})
    play.ask("mill", "u", {"n": 1})
    director.settle()
    for run_id in ("t", "u"):
        task = play.book.run(run_id).items[0]
        assert task.status == "rejected"
        assert isinstance(task, TaskState)
        assert task.error is not None
        assert task.error.message.startswith(f"input of mill.grind: {TOO_COSTLY}")


def test_an_answer_to_a_question_whose_schema_is_too_costly_is_refused_by_whoever_folds_it() -> None:
    play = Theatre([quiet], [], {})
    director = play.hire()
    play.request("quiet", "r", "x")
    director.settle()
    schema = {"properties": {"a": doubling("oneOf")}}
    schema["$defs"] = schema["properties"]["a"].pop("$defs")
    play.book.write("play.run.r.step.7.asked", StepAsked(question="?", schema=schema))
    answer = play.book.write("play.run.r.step.7.answered", StepAnswered(value={"a": "x"}))
    director.settle()
    refused = [item.event for item in play.book.all() if isinstance(item.event, AnswerRefused)]
    assert [one.sequence for one in refused] == [answer]
    assert refused[0].reason.startswith(TOO_COSTLY)
    assert play.book.run("r").items[7].status == "open"


Ruled = Annotated[str, WithJsonSchema({"$dynamicRef": "#x"})]


def test_models_whose_schema_cannot_be_checked_are_refused_where_they_are_used() -> None:
    class Mill(Agent):
        name = "mill"

        @handler()
        async def grind(self, ruled: Ruled) -> None: ...

    with pytest.raises(ConfigurationError, match=r"grind: .* has \$dynamicRef"):
        Mill.handlers()["grind"].spec()
    with pytest.raises(ConfigurationError, match=r"has \$dynamicRef"):
        Run("r", datetime.now(UTC)).ask_human("?", Ruled)


# --- what people write ---


class Leaf(BaseModel):
    kind: Literal["leaf"]
    field: str = Field(pattern=r"^[a-z][a-z0-9]{0,254}$")
    value: int | str | list[str] | None = None


class Branch(BaseModel):
    kind: Literal["and", "or"]
    parts: list[Node]


class Negation(BaseModel):
    kind: Literal["not"]
    part: Node


Node = Annotated[Leaf | Branch | Negation, Field(discriminator="kind")]


class Query(BaseModel):
    where: Node
    tags: dict[str, Node] = {}


def leaf(n: int) -> dict[str, Any]:
    return {"kind": "leaf", "field": f"f{n}", "value": [f"v{n}"]}


def test_a_recursive_model_with_large_and_deep_data_fits() -> None:
    wide: Any = {"kind": "and", "parts": [leaf(n) for n in range(1_500)]}
    deep: Any = leaf(0)
    for n in range(6):
        deep = {"kind": "or", "parts": [leaf(n), {"kind": "not", "part": deep}]}
    data: Any = {"where": {"kind": "or", "parts": [wide, deep]}, "tags": {f"t{n}": leaf(n) for n in range(500)}}
    Query.model_validate(data)
    assert find_error(Query.model_json_schema(), data) == ""
    data["where"]["parts"][0]["parts"][700]["field"] = 3
    assert find_error(Query.model_json_schema(), data)


def test_a_large_model_with_large_data_fits() -> None:
    fields: Any = {f"f{n}": (str | int | None, None) for n in range(100)}
    inner: Any = create_model("Inner", **fields)
    parts: Any = {f"part_{n}": (list[inner] | None, None) for n in range(100)}
    outer = create_model("Outer", **parts)
    schema = outer.model_json_schema()
    assert SchemaCost(schema)._flat > 10_000
    data = {f"part_{n}": [{f"f{m}": m for m in range(100)}] * 4 for n in range(0, 100, 2)}
    assert find_error(schema, data) == ""
    data["part_2"][0]["f3"] = [1.5]  # type: ignore[assignment]
    assert find_error(schema, data)


# --- the bound is one ---

NAMES = st.sampled_from(["a0", "a1", "a2", "a3"])
REFERENCES = NAMES.map(lambda name: {"$ref": f"#/$defs/{name}"})


def compounds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists, maps = st.lists(inner, min_size=1, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)
    optional: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), lists),
        **dict.fromkeys(("properties", "dependentSchemas", "patternProperties"), maps),
        **dict.fromkeys(("not", "if", "then", "else", "items", "contains", "propertyNames"), inner),
        **dict.fromkeys(("additionalProperties", "unevaluatedProperties", "unevaluatedItems"), inner),
        "$ref": NAMES.map(lambda name: f"#/$defs/{name}"),
        "type": st.sampled_from(["object", "array", "string"]),
    }
    chosen = st.lists(st.sampled_from(sorted(optional)), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: optional[name] for name in names}))


SCHEMAS = st.fixed_dictionaries(
    {"$defs": st.fixed_dictionaries(dict.fromkeys(("a0", "a1", "a2", "a3"), compounds(REFERENCES | st.just({}))))}
).flatmap(lambda definitions: NAMES.map(lambda name: {**definitions, "$ref": f"#/$defs/{name}"}))
DATA = st.recursive(
    st.integers(0, 3) | st.text("xyz", max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=12,
)


@given(SCHEMAS, DATA)
def test_a_validator_never_checks_more_than_was_counted(schema: dict[str, Any], data: Any) -> None:
    try:
        cost = SchemaCost(schema)
        checks, _, _ = cost._find_excess(data)
    except ConfigurationError:
        assume(False)
    assume(checks <= MAX_CHECKS)
    assert SchemaCost(schema)._flat * len(repr(data)) >= checks
    done = 0

    class Count:
        def __init__(self, *_: Any) -> None:
            pass

        def validate(self, _: Any) -> None:
            nonlocal done
            done += 1

    for definition in schema["$defs"].values():
        definition["x-count"] = True
    jsonschema_rs.Draft202012Validator(schema, keywords={"x-count": Count}).is_valid(data)
    assert done <= checks
