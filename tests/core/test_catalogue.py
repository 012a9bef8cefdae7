import pytest
from andes_andesvl.catalogue import FAMILY, Member, entries, member, plugins_of

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError


def test_the_family_has_four_members_each_with_an_instruct_and_a_thinking_checkpoint():
    assert [m.name for m in FAMILY] == ["andesvl-0.6b", "andesvl-1b", "andesvl-2b", "andesvl-4b"]
    assert member("andesvl-0.6b").checkpoints == ("OPPOer/AndesVL-0_6B-Instruct", "OPPOer/AndesVL-0_6B-Thinking")


def test_the_built_members_have_the_published_number_of_parameters():
    found = entries()
    assert [e.status for e in found] == ["ok"] * 4
    for entry in found:
        # published figures have three decimals of a billion, cut or rounded
        assert abs(entry.parameters - entry.member.published) < 1_000_000, entry.member.name
        assert entry.supported[:3] == ("load", "save", "generate")
    assert found[0].to_dict()["plugins"] == [{"siglip2": {"preset": "base"}}, "mlp", {"qwen3": {"preset": "0.6b"}}]


def test_the_list_of_a_member_assembles_and_may_be_extended_without_changing_the_catalogue():
    plugins = plugins_of("AndesVL-1B")
    assert Pipeline.from_plugins(plugins).plan.names == ("aimv2", "mlp", "qwen3")
    plugins[2]["qwen3"]["preset"] = "tiny"
    assert plugins_of("andesvl-1b")[2] == {"qwen3": {"preset": "0.6b"}}


def test_an_unknown_member_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        plugins_of("andesvl-3b")
    assert "did you mean" in caught.value.fix


def test_a_member_whose_plugins_are_not_installed_is_a_row_that_says_so():
    lacking = Member(
        name="other", vision="?", language_model="?", plugins=("not-installed", "mlp"), published=1, size="1B"
    )
    (entry,) = entries([lacking])
    assert entry.parameters is None
    assert entry.supported == ()
    assert "not-installed" in entry.status
