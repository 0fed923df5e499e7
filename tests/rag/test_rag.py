"""The library calls: indexing, searching, and telling an agent what was found."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from bento import Encoder
from bento.contract.errors import CollectionNotFound, InvalidSearch
from rag import (
    Hit,
    LocalBackend,
    PictureIndex,
    RagError,
    SearchRequest,
    format_image_search_results_for_agent,
    identity_of,
    index_image,
    search,
    search_images_by_image,
    search_images_by_text,
)
from rag.pictures.index import point_id
from rag.store.edge.store import EdgeStore
from router_client import VisionEncoderConnectionError
from tests.support.pictures import scene_image
from tests.support.serving import free_port


@pytest.fixture
def backend(encoder: Encoder, tmp_path: Path) -> Iterator[LocalBackend]:
    backend = LocalBackend(encoder, EdgeStore(tmp_path / "qdrant"))
    yield backend
    backend.close()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"picture_{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        scene_image(seed).save(path)
    return paths


def test_an_indexed_picture_is_found_by_itself(backend: LocalBackend, pictures: list[Path]) -> None:
    for i, path in enumerate(pictures):
        assert index_image(str(i), path, "dao", {"title": f"No. {i}"}, backend=backend)
    hits = search_images_by_image(pictures[2], "dao", backend=backend)
    assert len(hits) == 4
    assert hits[0].id == "2"
    assert hits[0].path == str(pictures[2])
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    assert hits[0].payload["title"] == "No. 2"
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_a_text_finds_at_most_top_k(backend: LocalBackend, pictures: list[Path]) -> None:
    for i, path in enumerate(pictures):
        index_image(str(i), path, "dao", backend=backend)
    assert len(search_images_by_text("a circle", top_k=2, backend=backend)) == 2
    assert len(search_images_by_text("a circle", top_k=50, backend=backend)) == 4


def test_indexing_again_changes_nothing_unless_something_changed(
    backend: LocalBackend, pictures: list[Path]
) -> None:
    assert index_image("1", pictures[0], "dao", {"a": 1}, backend=backend) is True
    assert index_image("1", pictures[0], "dao", {"a": 1}, backend=backend) is False
    assert index_image("1", pictures[0], "dao", {"a": 2}, backend=backend) is True
    pictures[0].write_bytes(pictures[1].read_bytes())  # another picture in the same place
    assert index_image("1", pictures[0], "dao", {"a": 2}, backend=backend) is True
    assert backend.stats("daarion_images").points == 1
    assert search_images_by_image(pictures[1], backend=backend)[0].score > 0.999


def test_tenants_do_not_see_each_other(backend: LocalBackend, pictures: list[Path]) -> None:
    index_image("1", pictures[0], "ours", backend=backend)
    index_image("1", pictures[1], "theirs", backend=backend)
    assert [h.path for h in search_images_by_text("a", "ours", backend=backend)] == [
        str(pictures[0])
    ]
    assert backend.delete("1", "theirs", "daarion_images") is True
    assert backend.delete("1", "theirs", "daarion_images") is False
    assert len(search_images_by_text("a", "ours", backend=backend)) == 1


def test_a_tenant_and_an_id_cannot_be_confused_with_another_pair() -> None:
    assert point_id("ab", "c") != point_id("a", "bc")
    assert point_id("a", "b") == point_id("a", "b")


def test_metadata_may_not_forge_what_the_index_sets(
    backend: LocalBackend, pictures: list[Path]
) -> None:
    with pytest.raises(InvalidSearch, match="content_hash, dao_id"):
        metadata = {"dao_id": "theirs", "content_hash": "0", "title": "fine"}
        index_image("1", pictures[0], "ours", metadata, backend=backend)


def test_a_collection_that_is_not_there_is_said_so_and_not_made(backend: LocalBackend) -> None:
    for call in (
        lambda: search_images_by_text("a", collection_name="none", backend=backend),
        lambda: backend.delete("1", "dao", "none"),
        lambda: backend.stats("none"),
    ):
        with pytest.raises(CollectionNotFound, match="'none'"):
            call()


def test_what_cannot_be_read_or_searched_is_a_sentence(
    backend: LocalBackend, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSearch, match="cannot read"):
        index_image("1", tmp_path / "none.png", "dao", backend=backend)
    with pytest.raises(InvalidSearch, match=r"^text\.0: String should have at least 1 character$"):
        search_images_by_text(" ", backend=backend)
    assert issubclass(InvalidSearch, RagError)


def test_a_search_that_cannot_be_made_is_an_answer_that_says_why(backend: LocalBackend) -> None:
    answer = search(SearchRequest(text="a circle", language="en"), backend=backend)
    assert (answer.success, answer.code, answer.hits) == (False, "collection_not_found", [])
    assert answer.error and "vision-rag index" in answer.error
    assert answer.formatted_text == f"Image search failed: {answer.error}"
    with pytest.raises(
        ValidationError, match="give must, should, must_not"
    ):  # the caller's mistake
        search(SearchRequest(text="a", filter={"all": []}), backend=backend)


def test_a_service_that_is_away_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", f"http://127.0.0.1:{free_port()}")
    answer = search(SearchRequest(text="a circle"))
    assert not answer.success and answer.error
    assert answer.error.startswith("no vision encoder answers at")
    assert answer.formatted_text.startswith("Пошук зображень не вдався: no vision")
    with pytest.raises(VisionEncoderConnectionError):
        search_images_by_text("a circle")


def test_another_models_collection_is_refused(
    backend: LocalBackend, encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    from bento.contract.errors import CollectionMismatch

    index_image("1", pictures[0], "dao", backend=backend)
    backend.close()
    store = EdgeStore(tmp_path / "qdrant")
    try:
        other = PictureIndex(store, replace(identity_of(encoder), weights_digest="other"))
        with pytest.raises(CollectionMismatch, match="weights_digest"):
            other.open("daarion_images", create=True)
        assert other.stats("daarion_images").points == 1
    finally:
        store.close()


def test_a_models_folder_may_move(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    here = identity_of(encoder)
    monkeypatch.setattr(encoder, "model_name", "local-dir:elsewhere/shapes")
    assert identity_of(encoder) == here
    monkeypatch.setattr(encoder, "model_name", "local-dir:elsewhere/other")
    assert identity_of(encoder) != here


def hits(count: int) -> list[Hit]:
    return [
        Hit(id=f"id{i}", score=0.9 - i / 100, path=f"/pictures/cat_{i}.jpg", payload={})
        for i in range(count)
    ]


def test_hits_are_told_in_ukrainian() -> None:
    three = hits(3)
    three[0].payload["title"] = "Рудий кіт"
    assert format_image_search_results_for_agent(three) == (
        "Знайдено 3 зображення:\n"
        "1. Рудий кіт (релевантність: 90%)\n"
        "2. cat_1.jpg (релевантність: 89%)\n"
        "3. cat_2.jpg (релевантність: 88%)"
    )


@pytest.mark.parametrize(
    ("count", "head"),
    [
        (1, "Знайдено 1 зображення:"),
        (2, "Знайдено 2 зображення:"),
        (4, "Знайдено 4 зображення:"),
        (5, "Знайдено 5 зображень:"),
        (11, "Знайдено 11 зображень:"),
        (14, "Знайдено 14 зображень:"),
        (21, "Знайдено 21 зображення:"),
        (25, "Знайдено 25 зображень:"),
        (112, "Знайдено 112 зображень:"),
    ],
)
def test_ukrainian_plurals_are_right(count: int, head: str) -> None:
    assert format_image_search_results_for_agent(hits(count)).split("\n")[0] == head


def test_hits_are_told_in_english() -> None:
    assert format_image_search_results_for_agent(hits(1), "en") == (
        "Found 1 image:\n1. cat_0.jpg (relevance: 90%)"
    )
    assert format_image_search_results_for_agent(hits(2), "en").startswith("Found 2 images:")


def test_no_hits_are_told_too() -> None:
    assert format_image_search_results_for_agent([]) == "Зображень не знайдено."
    assert format_image_search_results_for_agent([], "en") == "No images found."
    with pytest.raises(InvalidSearch, match="uk, en"):
        format_image_search_results_for_agent([], "fr")  # type: ignore[arg-type]


def test_search_is_a_function_also_when_the_package_of_that_name_is_imported() -> None:
    import rag
    import rag.search.searcher

    assert callable(rag.search) and pickle.loads(pickle.dumps(rag.search)) is rag.search
