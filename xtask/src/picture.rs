//! A picture of a terminal, made from lines that a real run printed.

use std::fmt::Write;

const LINE: usize = 20;
const CHARACTER: f64 = 8.43;
const MARGIN: usize = 18;

/// An SVG that shows the lines as a terminal would. Lines that begin with `$ ` are drawn as typed by a person.
pub fn terminal(lines: &[String]) -> String {
    let columns = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0).max(60);
    let width = (columns as f64 * CHARACTER) as usize + 2 * MARGIN;
    let height = lines.len() * LINE + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#16181d\"/>\n\
         <g font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,monospace\" font-size=\"14\" fill=\"#d7dae0\" xml:space=\"preserve\">\n"
    );
    for (index, line) in lines.iter().enumerate() {
        let y = MARGIN + index * LINE + 14;
        let style = if line.starts_with("$ ") { " fill=\"#8fd18f\"" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y}\"{style}>{}</text>", escape(line));
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

fn escape(line: &str) -> String {
    line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn markup_in_a_line_stays_text() {
        let svg = super::terminal(&["$ echo '<b>&'".into()]);
        assert!(svg.contains("$ echo '&lt;b&gt;&amp;'"));
        assert!(!svg.contains("<b>"));
    }
}
