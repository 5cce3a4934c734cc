//! What the code of a model's answer costs to find: 1 MB with a thousand blocks.

use crate::{
    Plan,
    sample::{Row, Unit, ms},
};
use anyhow::{Result, ensure};
use offshoot_code::{Intent, extract};
use std::{hint::black_box, time::Instant};

const BLOCKS: usize = 1000;
const SIZE: usize = 1_000_000;

pub fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let answer = answer();
    let mut values = Vec::new();
    for _ in 0..plan.samples(200) {
        let began = Instant::now();
        let blocks = extract(black_box(&answer));
        let intent = Intent::of(black_box(&answer));
        values.push(ms(began));
        ensure!(blocks.len() == BLOCKS, "{} blocks were found", blocks.len());
        black_box(intent);
    }
    rows.push(Row::new("blocks: an answer of 1 MB, 1,000 blocks of code", Unit::Ms, values, 0));
    Ok(())
}

/// Words of several scripts around code of five languages, some in lists, some without a language.
fn answer() -> String {
    const CODE: [(&str, &str); 6] = [
        (
            "python",
            "import os\n\ndef total(values):\n    return sum(v * 2 for v in values)\n\nprint(total([1, 2]))\n",
        ),
        ("javascript", "const fs = require('fs');\nconsole.log(fs.readdirSync('.').map((n) => n.length));\n"),
        ("bash", "set -e\nfor f in *.log; do\n  rm -rf \"$f.d\"\ndone\ncurl -s https://example.com | head\n"),
        (
            "go title=main.go",
            "package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(\"日本語\")\n}\n",
        ),
        ("rust,no_run", "fn main() {\n    println!(\"{}\", (1..=3).sum::<i32>());\n}\n"),
        ("", "def unnamed(x):\n    return x + 1\n\nprint(unnamed(1))\n"),
    ];
    const WORDS: &str = "Here is what *really* happens: the **next** step reads `input.txt`, converts größe to 大きさ, and \
        then [writes](https://example.com/a?b=c) it again. Please run this and tell me whether it works. ";
    let mut text = String::with_capacity(SIZE + SIZE / 10);
    for (index, (info, code)) in CODE.iter().cycle().take(BLOCKS).enumerate() {
        text.push_str(&format!("## Step {index}\n\n```{info}\n{code}```\n\n"));
        while text.len() < (index + 1) * (SIZE / BLOCKS) {
            text.push_str(WORDS);
        }
        text.push_str("\n\n");
    }
    text
}
