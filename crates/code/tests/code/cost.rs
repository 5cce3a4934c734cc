//! What a text costs, whoever wrote it.
//!
//! Each of these takes some tens of milliseconds in time linear in its length, and most of a minute or more in quadratic
//! time: the bound is far from both.

use offshoot_code::{Intent, extract};
use std::time::{Duration, Instant};

const SIZE: usize = 1 << 18;
const BOUND: Duration = Duration::from_secs(10);

fn check(name: &str, text: &str) {
    let begun = Instant::now();
    let blocks = extract(text).len();
    let _ = Intent::of(text);
    let took = begun.elapsed();
    assert!(took < BOUND, "{name}: {} bytes, {blocks} blocks took {took:?}", text.len());
}

#[test]
fn hostile_texts_take_no_longer_than_their_length_says() {
    let half = |piece: &str| piece.repeat(SIZE / 2 / piece.len());
    for (name, piece) in [
        ("backticks", "`"),
        ("spaced backticks", "` "),
        ("growing runs", "`a``b```c````d"),
        ("tildes", "~"),
        ("fences", "```\n"),
        ("small blocks", "```\nabc\n```\n"),
        ("quotes", "> "),
        ("tight quotes", ">"),
        ("lists", "- "),
        ("numbers", "1. "),
        ("brackets", "["),
        ("links", "[a]("),
        ("pictures", "![]("),
        ("emphasis", "*a_"),
        ("angles", "<"),
        ("comments", "<!--"),
        ("instructions", "<?"),
        ("declarations", "<!A"),
        ("entities", "&#x"),
        ("backslashes", "\\"),
        ("tabs", "\t"),
        ("carriage returns", "\r"),
        ("lines", "\n"),
        ("assignments", "a = 1\n"),
        ("removals", "rm -"),
        ("pipes", "curl |"),
        ("definitions", "[a]: b\n"),
        ("intents", "run this "),
    ] {
        check(name, &format!("{}x{}", half(piece), half("\n")));
        check(name, &format!("{}{}", half(piece), half(&format!("a{piece}\n"))));
        check(name, &format!("{}\n```bash\n{}\n```\n", half(piece), half(piece)));
    }
    let nested: String = (0..700).map(|depth| format!("{}- a\n", "  ".repeat(depth))).collect();
    check("a list in a list", &(nested + &half("\n")));
}
