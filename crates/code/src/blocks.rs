//! The code of a text, block by block.

use crate::{
    Hazard, Language, Tag,
    confidence::{self, Confidence},
    detect, inline, nesting, risk,
};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag as Element, TagEnd};
use std::ops::Range;

/// Code that is shorter than this, white space apart, is an illustration.
const MIN_LENGTH: usize = 3;

/// One piece of code, and what can be said of it without running it.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    pub tag: Tag,
    pub origin: Origin,
    /// Line ends are `\n`; what indents or quotes the block is not part of it, nor is its last line end.
    pub code: String,
    /// Bytes of the text that are the block, its fences included; always between characters.
    pub span: Range<usize>,
    /// Bytes of the text that its code was taken from.
    pub code_span: Range<usize>,
    pub confidence: Confidence,
    /// Whether the text around it asks for it to be run.
    pub intended: bool,
    pub hazard: Option<Hazard>,
}

/// How a block was found, and how its language is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A fence that says in which language; this is all it says.
    Named { info: String },
    /// A fence that says nothing, or nothing of a language.
    Unnamed { info: String },
    /// A line outside of all blocks that is a command.
    Line,
}

impl Block {
    pub fn language(&self) -> Option<Language> {
        self.tag.language()
    }
}

/// All code of a text, in the order of the text.
///
/// Fenced blocks are those of CommonMark: of backticks or tildes of any length, in lists and quotes, open ones to the end
/// of what they are in. Text that is merely indented is no block, as no model marks code so.
pub fn extract(text: &str) -> Vec<Block> {
    let surroundings = confidence::Surroundings::of(text);
    let Found { mut pieces, taken } = fenced(text);
    let lines = inline::commands(text, &taken).map(|command| Piece {
        origin: Origin::Line,
        tag: command.tag,
        code: text[command.span.clone()].to_owned(),
        code_span: command.span.clone(),
        span: command.span,
    });
    pieces.extend(lines);
    pieces.sort_by_key(|piece| piece.span.start);
    let mut blocks = Vec::with_capacity(pieces.len());
    for Piece { origin, tag, code, span, code_span } in pieces {
        let intended = surroundings.intend(&span);
        let confidence = surroundings.confidence(&tag, &code, intended);
        if origin == Origin::Line && !inline::counts(confidence) {
            continue;
        }
        let hazard = risk::of_code(tag.language(), &code);
        blocks.push(Block { tag, origin, code, span, code_span, confidence, intended, hazard });
    }
    blocks
}

struct Piece {
    origin: Origin,
    tag: Tag,
    code: String,
    span: Range<usize>,
    code_span: Range<usize>,
}

struct Found {
    pieces: Vec<Piece>,
    /// What no command can be in, in order: blocks of code of both kinds, and of HTML.
    taken: Vec<Range<usize>>,
}

/// A block whose end was not seen yet.
struct Open {
    span: Range<usize>,
    /// `None` for one that is merely indented.
    info: Option<String>,
    code: String,
    code_span: Option<Range<usize>>,
}

fn fenced(text: &str) -> Found {
    let seen = nesting::bounded(text);
    let mut found = Found { pieces: Vec::new(), taken: Vec::new() };
    let mut open: Option<Open> = None;
    for (event, span) in Parser::new_ext(&seen, Options::empty()).into_offset_iter() {
        match event {
            Event::Start(Element::CodeBlock(kind)) => {
                let info = match kind {
                    CodeBlockKind::Fenced(info) => Some(info.into_string()),
                    CodeBlockKind::Indented => None,
                };
                open = Some(Open { span, info, code: String::new(), code_span: None });
            }
            Event::Text(said) => {
                let Some(open) = &mut open else { continue };
                // The parser's own view of a line may be bounded, and what it makes up has no place in the text.
                let whole = seen.get(span.clone()).is_some_and(|part| part == &*said);
                open.code.push_str(if whole { &text[span.clone()] } else { &said });
                let start = open.code_span.take().map_or(span.start, |before| before.start);
                open.code_span = Some(start..span.end);
            }
            Event::End(TagEnd::CodeBlock) => {
                if let Some(open) = open.take() {
                    found.take(text, open);
                }
            }
            Event::Start(Element::HtmlBlock) => found.taken.push(span),
            _ => {}
        }
    }
    found
}

impl Found {
    fn take(&mut self, text: &str, open: Open) {
        let Open { span, info, mut code, code_span } = open;
        self.taken.push(span.clone());
        let Some(info) = info else { return };
        let code_span = code_span.unwrap_or(span.start..span.start);
        let mut trimmed = code_span.clone();
        if code.ends_with('\n') {
            code.pop();
            let taken = &text[code_span.clone()];
            let bare = taken.strip_suffix('\n').map_or(taken, |rest| rest.strip_suffix('\r').unwrap_or(rest));
            trimmed.end = code_span.start + bare.len();
        }
        if code.trim().len() < MIN_LENGTH {
            return;
        }
        let end = span.start + text[span.clone()].trim_end_matches(['\n', '\r']).len();
        // A line that ends in the middle of its end.
        let end = end.max(trimmed.end);
        let (tag, origin) = match Tag::of_info(&info) {
            Some(tag) => (tag, Origin::Named { info }),
            None => (detect::language(&code).map_or(Tag::TEXT, Tag::from), Origin::Unnamed { info }),
        };
        self.pieces.push(Piece { origin, tag, code, span: span.start..end, code_span: trimmed });
    }
}
