//! Every way to fence code.

use offshoot_code::{Block, Intent, Language, Origin, extract};
use serde_json::{Value, json};

fn told(text: &str) -> Value {
    let blocks = extract(text);
    let told = |block: &Block| {
        assert_eq!(text.get(block.span.clone()).map(str::len), Some(block.span.len()));
        json!({
            "language": block.tag.as_str(),
            "origin": format!("{:?}", block.origin),
            "code": block.code,
            "at": &text[block.span.clone()],
            "code_at": &text[block.code_span.clone()],
            "confidence": block.confidence.as_f64(),
            "hazard": block.hazard.map(|hazard| hazard.as_str()),
        })
    };
    let intent = Intent::of(text);
    json!({
        "blocks": blocks.iter().map(told).collect::<Vec<_>>(),
        "intent": [intent.confidence.as_f64(), intent.suggestion.as_str(), intent.keywords],
    })
}

/// Languages and code of a text's blocks.
fn found(text: &str) -> Vec<(String, String)> {
    extract(text).into_iter().map(|block| (block.tag.to_string(), block.code)).collect()
}

fn one(language: &str, code: &str) -> Vec<(String, String)> {
    vec![(language.into(), code.into())]
}

#[test]
fn fence_variants() {
    for (text, language, code) in [
        ("```python\nprint(1)\n```", "python", "print(1)"),
        ("```python\r\nprint(1)\r\nprint(2)\r\n```\r\n", "python", "print(1)\nprint(2)"),
        ("~~~python\nprint('```')\n~~~", "python", "print('```')"),
        ("````md\n```python\nprint(1)\n```\n````", "md", "```python\nprint(1)\n```"),
        ("`````bash\necho a\n`````\n", "bash", "echo a"),
        ("```c++\nint x;\n```", "c++", "int x;"),
        ("```objective-c\nint x;\n```", "objective-c", "int x;"),
        ("```python title=\"a.py\" {1,3}\nprint(1)\n```", "python", "print(1)"),
        ("``` python\nprint(1)\n```", "python", "print(1)"),
        ("```python\nprint(1)", "python", "print(1)"),
        ("```python\nprint(1)\n", "python", "print(1)"),
        ("```python\nprint(1)\n\n```", "python", "print(1)\n"),
        ("```python\n\nprint(1)\n```", "python", "\nprint(1)"),
        ("- a list:\n  ```bash\n  echo a\n    indented\n  ```\n", "bash", "echo a\n  indented"),
        ("> ```bash\n> echo a\n> ```\nafter", "bash", "echo a"),
        ("> ```bash\n> echo a\nnot quoted", "bash", "echo a"),
        ("1. x\n   - > ~~~sh\n     > echo a\n     > ~~~\n", "bash", "echo a"),
        ("   ```bash\n   echo a\n   ```", "bash", "echo a"),
        ("```bash\necho a\n``` not an end\n```", "bash", "echo a\n``` not an end"),
        ("```bash\necho a\n``````", "bash", "echo a"),
        ("\u{feff}text\n```bash\necho é\n```", "bash", "echo é"),
    ] {
        assert_eq!(found(text), one(language, code), "{text:?}");
    }
}

#[test]
fn what_only_looks_like_a_block_is_none() {
    for text in [
        "",
        "Use `print(1)` for that.",
        "``` print(1) ``` in a line",
        "    ```python\n    print(1)\n    ```",
        "```python\n```",
        "```python\nx\n```",
        "<pre>\n```python\nprint(1)\n```\n</pre>",
        "\\```python",
    ] {
        assert_eq!(found(text), [], "{text:?}");
    }
}

#[test]
fn heredoc_terminator_in_code_is_safe() {
    let code = "cat <<'EOF'\n$(id) `id`\nEOF\necho done";
    assert_eq!(found(&format!("```bash\n{code}\n```")), one("bash", code));
}

#[test]
fn block_order_preserved() {
    let text = "x = 11\n```text\nabc\n```\npython3 a.py\n~~~python\nimport os\nprint(os)\n~~~\n```go\nvar x int\n```";
    let languages: Vec<String> = extract(text).iter().map(|block| block.tag.to_string()).collect();
    assert_eq!(languages, ["python", "text", "bash", "python", "go"], "not by how sure one is of each");
}

#[test]
fn multibyte_text_no_panic() {
    let around = "日本語😀é".repeat(40);
    for cut in 0..8 {
        let text = format!("{}{around}\n```python\nprint('日本😀')\n```\n{around}", "x".repeat(cut));
        let blocks = extract(&text);
        assert_eq!(blocks.len(), 1);
        assert_eq!(&text[blocks[0].code_span.clone()], "print('日本😀')");
        assert!(text[blocks[0].span.clone()].starts_with("```python"));
    }
}

#[test]
fn a_fence_that_says_nothing_is_read_for_its_language() {
    for (text, language) in [
        ("```\nimport os\nprint(os.name)\n```", Some(Language::Python)),
        ("```title=x\n#!/bin/sh\necho a\n```", Some(Language::Bash)),
        ("```\nJust some words.\n```", None),
    ] {
        let blocks = extract(text);
        assert_eq!(blocks[0].language(), language, "{text}");
        assert!(matches!(blocks[0].origin, Origin::Unnamed { .. }));
    }
}

#[test]
fn an_answer_is_told_as_this() {
    let answer = "I can fix it. Let's run the test first:\n\n\
        ```python title=check.py\nimport shutil\nshutil.rmtree('/tmp/x')\n```\n\n\
        1. then this:\r\n   ```\r\n   echo $HOME && ls -l\r\n   ```\r\n\n\
        python3 -m pytest -q\n\n\
        Does it work? Try this 😀:\n\n> ~~~RS\n> fn main() { println!(\"é\"); }\n> ~~~\n\n```mermaid\ngraph TD\n";
    insta::assert_json_snapshot!(told(answer));
}
