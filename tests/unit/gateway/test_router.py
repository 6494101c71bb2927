"""The radix router: fixed paths, parameters, the rest, and what wins."""

from __future__ import annotations

import pytest

from nodes.gateway.router import Router


def routed(*patterns: str) -> Router[str]:
    router: Router[str] = Router()
    for pattern in patterns:
        router.add("GET", pattern, pattern)
    return router


def find(router: Router[str], path: str, method: str = "GET") -> tuple[str | None, dict[str, str]] | None:
    found = router.find(path)
    return None if found is None else (found[0].find(method), dict(found[1]))


@pytest.mark.parametrize("path", ["/", "/write", "/api/v3/write_lp", "/api/v3/configure/database"])
def test_a_fixed_path_matches_itself_only(path: str) -> None:
    router = routed("/", "/write", "/api/v3/write_lp", "/api/v3/configure/database")
    assert find(router, path) == (path, {})
    assert find(router, path + "/") is None or path == "/"
    assert find(router, path + "x") is None


def test_unknown_paths_match_nothing() -> None:
    router = routed("/a/b/c", "/a/{x}/d")
    for path in ("/a", "/a/b", "/a/b/c/d", "/b", "", "a/b/c", "//", "/a//d", "/a/b/e"):
        assert find(router, path) is None, path


def test_parameters_take_one_segment() -> None:
    router = routed("/db/{name}/tables/{table}", "/db/{name}")
    assert find(router, "/db/x") == ("/db/{name}", {"name": "x"})
    assert find(router, "/db/x/tables/t") == ("/db/{name}/tables/{table}", {"name": "x", "table": "t"})
    assert find(router, "/db/") is None


def test_fixed_wins_over_parameter_and_parameter_over_rest() -> None:
    router = routed("/v/health", "/v/{name}", "/v/{tail:path}", "/v/{name}/x")
    assert find(router, "/v/health") == ("/v/health", {})
    assert find(router, "/v/other") == ("/v/{name}", {"name": "other"})
    assert find(router, "/v/other/x") == ("/v/{name}/x", {"name": "other"})
    assert find(router, "/v/other/y/z") == ("/v/{tail:path}", {"tail": "other/y/z"})


def test_a_dead_end_goes_back_to_the_parameter() -> None:
    router = routed("/t/all/rows/{n}", "/t/{name}/files", "/t/all/columns/{n}")
    assert find(router, "/t/all/files") == ("/t/{name}/files", {"name": "all"})
    assert find(router, "/t/all/rows/7") == ("/t/all/rows/{n}", {"n": "7"})
    assert find(router, "/t/all/columns/7") == ("/t/all/columns/{n}", {"n": "7"})


def test_compressed_edges_split_where_they_part() -> None:
    patterns = ["/a/b/c/{x}", "/a/b/d/{x}", "/a/b/{x}", "/a/{x}", "/a/b/c/d/{x}"]
    router = routed(*patterns)
    assert find(router, "/a/b/c/1") == ("/a/b/c/{x}", {"x": "1"})
    assert find(router, "/a/b/d/1") == ("/a/b/d/{x}", {"x": "1"})
    assert find(router, "/a/b/1") == ("/a/b/{x}", {"x": "1"})
    assert find(router, "/a/1") == ("/a/{x}", {"x": "1"})
    assert find(router, "/a/b/c/d/1") == ("/a/b/c/d/{x}", {"x": "1"})


def test_methods_and_what_is_allowed() -> None:
    router: Router[str] = Router()
    router.add("GET", "/x", "get")
    router.add("POST", "/x", "post")
    assert find(router, "/x", "POST") == ("post", {})
    assert find(router, "/x", "HEAD") == ("get", {})
    assert find(router, "/x", "PUT") == (None, {})
    found = router.find("/x")
    assert found is not None
    assert found[0].allowed == "GET, HEAD, OPTIONS, POST"


def test_mistakes_in_routes_are_found_when_they_are_added() -> None:
    router = routed("/x", "/p/{a}/b")
    with pytest.raises(ValueError, match="two routes for GET /x"):
        router.add("GET", "/x", "again")
    with pytest.raises(ValueError, match="starts with /"):
        router.add("GET", "x", "x")
    with pytest.raises(ValueError, match="must stand last"):
        router.add("GET", "/r/{tail:path}/more", "x")
    with pytest.raises(ValueError, match="'other'"):
        router.add("GET", "/p/{other}/c", "x")
