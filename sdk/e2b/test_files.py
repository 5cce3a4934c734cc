"""Files: read, written, listed, watched, handed out by signed URL."""

import threading
import urllib.request

import pytest
from e2b import FileNotFoundException, FilesystemEventType, FileType, NotFoundException, Sandbox


def test_files_go_both_ways(sandbox: Sandbox) -> None:
    written = sandbox.files.write("dir/a.txt", "héllo")
    assert (written.name, written.path) == ("a.txt", "/home/user/dir/a.txt")
    assert sandbox.files.read("dir/a.txt") == "héllo"
    data = bytes(range(256)) * 8192
    sandbox.files.write("/home/user/dir/b.bin", data)
    assert bytes(sandbox.files.read("dir/b.bin", format="bytes")) == data
    assert sandbox.commands.run("stat -c '%U %s' dir/b.bin").stdout == f"user {len(data)}\n"
    assert b"".join(sandbox.files.read("dir/b.bin", format="stream")) == data
    many = sandbox.files.write_files([{"path": "dir/1", "data": "one"}, {"path": "dir/2", "data": b"two"}])
    assert [one.path for one in many] == ["/home/user/dir/1", "/home/user/dir/2"]
    with pytest.raises(NotFoundException):
        sandbox.files.read("nowhere")


def test_directories_are_made_listed_moved_and_removed(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("tree/deep/er")
    assert not sandbox.files.make_dir("tree/deep")
    sandbox.files.write("tree/file", "x")
    sandbox.commands.run("ln -s file tree/link")
    listed = {entry.name: entry for entry in sandbox.files.list("tree")}
    assert set(listed) == {"deep", "file", "link"}
    assert listed["deep"].type == FileType.DIR
    assert (listed["file"].owner, listed["file"].size, listed["file"].permissions) == ("user", 1, "-rw-r--r--")
    assert listed["link"].symlink_target == "/home/user/tree/file"
    assert {entry.path for entry in sandbox.files.list("tree", depth=2)} >= {"/home/user/tree/deep/er"}
    assert sandbox.files.rename("tree/file", "tree/moved").path == "/home/user/tree/moved"
    assert not sandbox.files.exists("tree/file")
    sandbox.files.remove("tree")
    assert not sandbox.files.exists("tree")


def test_changes_are_watched(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched/below")
    with_children = sandbox.files.watch_dir("watched", recursive=True)
    try:
        sandbox.files.write("watched/new", "x")
        sandbox.files.write("watched/below/new", "x")
        sandbox.files.remove("watched/new")
        seen: set[tuple[FilesystemEventType, str]] = set()
        wanted = {
            (FilesystemEventType.CREATE, "new"),
            (FilesystemEventType.REMOVE, "new"),
            (FilesystemEventType.CREATE, "below/new"),
        }
        for _ in range(100):
            seen |= {(event.type, event.name) for event in with_children.get_new_events()}
            if wanted <= seen:
                break
            threading.Event().wait(0.1)
        assert wanted <= seen
    finally:
        with_children.stop()
    with pytest.raises((NotFoundException, FileNotFoundException)):
        sandbox.files.watch_dir("nowhere")


def test_a_signed_url_opens_one_file_and_no_other(sandbox: Sandbox) -> None:
    sandbox.files.write("public", "for anyone with the link")
    url = sandbox.download_url("public", user="user", use_signature_expiration=60)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        assert answer.read() == b"for anyone with the link"
    other = url.replace("path=public", "path=private")
    assert other != url
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(other, headers=headers), timeout=30)
    assert refused.value.code == 401
