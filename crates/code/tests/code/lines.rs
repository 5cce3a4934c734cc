//! Commands in lines of their own.

use offshoot_code::{Origin, extract};

fn lines(text: &str) -> Vec<(String, String)> {
    let lines = extract(text).into_iter().filter(|block| block.origin == Origin::Line);
    lines.map(|block| (block.tag.to_string(), block.code)).collect()
}

#[test]
fn a_command_in_a_line_of_its_own_is_found() {
    for (text, language, code) in [
        ("First:\npython3 -m http.server\nthen look.", "bash", "python3 -m http.server"),
        ("python app.py", "bash", "python app.py"),
        ("node server.js\r\n", "bash", "node server.js"),
        ("bash install.sh", "bash", "bash install.sh"),
        ("cargo run --release", "bash", "cargo run --release"),
        ("total = price * 2", "python", "total = price * 2"),
    ] {
        assert_eq!(lines(text), [(language.to_owned(), code.to_owned())], "{text:?}");
    }
}

#[test]
fn what_is_no_command_is_not_found() {
    for text in [
        "Use python 3 for it.",
        "  python3 a.py",
        "`python3 a.py`",
        "- python3 a.py",
        "a=1",
        "a == b and more",
        "node",
        "cargo runner",
        "python3    ",
    ] {
        assert_eq!(lines(text), [], "{text:?}");
    }
}

/// What is in a block is that block, once.
#[test]
fn a_command_in_a_block_is_no_second_one() {
    for text in [
        "```bash\npython3 a.py\nx = 1234\n```",
        "~~~\npython3 a.py\nx = 1234\n~~~",
        "- ```bash\npython3 a.py\n",
        "    x = 1\n    y = 2\n",
        "<pre>\npython3 a.py\n</pre>",
        "```bash\npython3 a.py",
    ] {
        let found = lines(text);
        let in_list = text.starts_with("- ");
        assert_eq!(found.len(), usize::from(in_list), "{text:?}: {found:?}");
    }
}
