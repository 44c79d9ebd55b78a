"""Danger: the registry shows bundles that nobody signed, or hides which role and lineage stand behind one."""

from __future__ import annotations

import pytest


@pytest.fixture
def registered(trusted_api, ceremony, kit):
    """Version 1 for two boards by the release engineers, version 2 for one by the worker."""
    context = trusted_api.context
    kit.publish(context, ceremony, kit.make_bundle(), kit.make_bundle(profile="x86-64"))
    kit.publish(context, ceremony, kit.make_bundle(version=2), role="auto/lab")
    return trusted_api


def test_models_versions_and_bundles_are_listed(registered, kit):
    listed = registered.viewer.get("/models").json()["items"]
    assert listed == [
        {"model": "digits", "latest": 2, "production": None, "versions": [1, 2], "channels": ["lab"]},
    ]
    model = registered.worker.get("/models/digits").json()
    assert model["floor"] == 0
    assert [(v["version"], v["stage"], v["bundles"]) for v in model["versions"]] == [
        (1, "candidate", 2),
        (2, "candidate", 1),
    ]
    version = registered.viewer.get("/models/digits/versions/1").json()
    assert version["lineage"] == {"run": "run-1", "data_fingerprint": "f" * 64}
    first = version["bundles"][0]
    made = kit.make_bundle()
    assert first["path"] == made.file.path
    assert (first["sha256"], first["length"]) == (made.file.sha256, made.file.length)
    assert (first["role"], first["attested_by"], first["trusted"]) == ("targets", ["targets"], True)
    assert first["metrics"] == {"accuracy": 0.98} and first["engine"] == "onnxruntime"
    assert registered.viewer.get("/models/digits/versions/2").json()["bundles"][0]["role"] == "auto/lab"


def test_a_withdrawn_bundle_stays_visible_as_not_trusted(registered, ceremony):
    ceremony.targets.signed.targets.clear()
    registered.operator.put("/metadata/targets", content=ceremony.next_targets()).raise_for_status()
    bundles = registered.viewer.get("/models/digits/versions/1").json()["bundles"]
    assert [b["trusted"] for b in bundles] == [False, False]
    assert registered.viewer.get("/status").json()["counts"]["bundles"] == 1


def test_a_model_has_one_production_version(registered):
    for version, expected in ((1, ["production", "candidate"]), (2, ["archived", "production"])):
        answer = registered.operator.put(f"/models/digits/versions/{version}/stage", json={"stage": "production"})
        assert answer.json()["stage"] == "production"
        versions = registered.viewer.get("/models/digits").json()["versions"]
        assert [v["stage"] for v in versions] == expected
    assert registered.viewer.get("/models").json()["items"][0]["production"] == 2


def test_the_signed_floor_is_shown(registered, ceremony):
    registered.operator.put("/metadata/targets", content=ceremony.next_targets(floors={"digits": 2})).raise_for_status()
    assert registered.viewer.get("/models/digits").json()["floor"] == 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/none", 404),
        ("/models/digits/versions/9", 404),
        ("/models/digits/versions/0", 404),
        ("/models/digits/versions/99999999999999999999", 404),
        ("/models/digits/versions/x", 422),
        ("/attestations/" + "0" * 64, 200),
        ("/attestations/x", 422),
    ],
)
def test_what_is_not_there_is_said_so(registered, path, status):
    assert registered.viewer.get(path).status_code == status


def test_stages_other_than_the_three_are_refused(registered):
    answer = registered.operator.put("/models/digits/versions/1/stage", json={"stage": "shipped"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_malformed_floors_are_refused_before_they_could_stop_every_device(registered, ceremony):
    answer = registered.operator.put("/metadata/targets", content=ceremony.next_targets(floors={"digits": "two"}))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
