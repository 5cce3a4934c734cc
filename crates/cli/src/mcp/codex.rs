//! The TOML file of Codex: a table is added at its end, what is there is not touched.

use std::fmt;

/// Why a file is left as it is.
#[derive(Debug)]
pub enum Unsuited {
    /// It cannot be read as TOML, or would not be any more.
    Invalid(Box<toml::de::Error>),
    /// Another entry of our name stands there.
    Taken,
}

impl fmt::Display for Unsuited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => write!(f, "{}", error.message()),
            Self::Taken => f.write_str("it has another server of this name already"),
        }
    }
}

/// The table that tells of a server.
pub fn table(name: &str, command: &str, arguments: &[String]) -> String {
    // A string of TOML's basic form is one of JSON's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let arguments: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    let (command, arguments) = (quoted(command), arguments.join(", "));
    format!("[mcp_servers.{name}]\ncommand = {command}\nargs = [{arguments}]\n")
}

/// The document with `table` added; `None` if it says that already.
pub fn with_table(document: &str, name: &str, table: &str) -> Result<Option<String>, Unsuited> {
    let parse = |text: &str| -> Result<toml::Table, Unsuited> {
        text.parse().map_err(|error| Unsuited::Invalid(Box::new(error)))
    };
    let server =
        |whole: &toml::Table| whole.get("mcp_servers").and_then(|servers| servers.get(name)).cloned();
    let (present, wanted) = (server(&parse(document)?), server(&parse(table)?));
    match present {
        Some(_) if present == wanted => return Ok(None),
        Some(_) => return Err(Unsuited::Taken),
        None => {}
    }
    let gap = match document {
        "" => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    let written = format!("{document}{gap}{table}");
    // A table that was written inline cannot be added to.
    parse(&written).map(|_| Some(written))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_added_once_behind_what_is_there() {
        let table = table("offshoot", "/a \"b\"", &["mcp".into(), "--vm".into()]);
        let written = with_table("# mine\nmodel = \"x\"", "offshoot", &table).unwrap().unwrap();
        assert!(written.starts_with("# mine\nmodel = \"x\"\n\n[mcp_servers.offshoot]\n"), "{written}");
        let parsed: toml::Table = written.parse().unwrap();
        assert_eq!(parsed["mcp_servers"]["offshoot"]["command"].as_str(), Some("/a \"b\""));
        assert!(with_table(&written, "offshoot", &table).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_added_to_is_refused() {
        let table = table("offshoot", "x", &[]);
        let other = "[mcp_servers.offshoot]\ncommand = \"y\"\n";
        assert!(matches!(with_table(other, "offshoot", &table), Err(Unsuited::Taken)));
        assert!(matches!(with_table("mcp_servers = {}\n", "offshoot", &table), Err(Unsuited::Invalid(_))));
        assert!(matches!(with_table("= 1", "offshoot", &table), Err(Unsuited::Invalid(_))));
    }
}
