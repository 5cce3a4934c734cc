//! Clients that start MCP servers, and where each reads which.
//!
//! The places are those their makers document. None of them is ours: a newer release may read another.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Agent {
    ClaudeDesktop,
    ClaudeCode,
    Cursor,
    #[value(name = "vscode")]
    VsCode,
    Windsurf,
    Zed,
    Codex,
}

/// How a client's file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A JSON document with an object of servers by this name.
    Json { servers: &'static str, entry: Entry },
    /// A TOML document with a table `mcp_servers`.
    Toml,
}

/// What stands in an entry besides command and arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    Plain,
    /// `"type": "stdio"`.
    Typed,
    /// `"source": "custom"`.
    Custom,
}

/// What tells where files are.
#[derive(Debug, Clone)]
pub struct Surroundings {
    pub home: PathBuf,
    /// `$XDG_CONFIG_HOME`, if it is set and absolute.
    pub config_home: Option<PathBuf>,
}

impl Surroundings {
    fn config(&self) -> PathBuf {
        self.config_home.clone().unwrap_or_else(|| self.home.join(".config"))
    }
}

impl Agent {
    pub const ALL: [Self; 7] = [
        Self::ClaudeDesktop,
        Self::ClaudeCode,
        Self::Cursor,
        Self::VsCode,
        Self::Windsurf,
        Self::Zed,
        Self::Codex,
    ];

    /// As it is named on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ClaudeDesktop => "claude-desktop",
            Self::ClaudeCode => "claude-code",
            Self::Cursor => "cursor",
            Self::VsCode => "vscode",
            Self::Windsurf => "windsurf",
            Self::Zed => "zed",
            Self::Codex => "codex",
        }
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::ClaudeDesktop => "Claude Desktop",
            Self::ClaudeCode => "Claude Code",
            Self::Cursor => "Cursor",
            Self::VsCode => "VS Code",
            Self::Windsurf => "Windsurf",
            Self::Zed => "Zed",
            Self::Codex => "Codex",
        }
    }

    /// The file of its user.
    pub fn file(self, around: &Surroundings) -> PathBuf {
        let home = |path: &str| around.home.join(path);
        let config = |path: &str| around.config().join(Path::new(path));
        match self {
            Self::ClaudeDesktop => config("Claude/claude_desktop_config.json"),
            Self::ClaudeCode => home(".claude.json"),
            Self::Cursor => home(".cursor/mcp.json"),
            Self::VsCode => config("Code/User/mcp.json"),
            Self::Windsurf => home(".codeium/windsurf/mcp_config.json"),
            Self::Zed => config("zed/settings.json"),
            Self::Codex => home(".codex/config.toml"),
        }
    }

    pub const fn form(self) -> Form {
        match self {
            Self::ClaudeDesktop | Self::Cursor | Self::Windsurf => {
                Form::Json { servers: "mcpServers", entry: Entry::Plain }
            }
            Self::ClaudeCode => Form::Json { servers: "mcpServers", entry: Entry::Typed },
            Self::VsCode => Form::Json { servers: "servers", entry: Entry::Typed },
            Self::Zed => Form::Json { servers: "context_servers", entry: Entry::Custom },
            Self::Codex => Form::Toml,
        }
    }

    /// What its user should know before it is written.
    pub const fn remark(self) -> Option<&'static str> {
        match self {
            Self::ClaudeDesktop => Some(
                "Claude Desktop has no release of its maker for Linux; this is where the ones of others read it",
            ),
            Self::ClaudeCode => {
                Some("end Claude Code first, which writes this file itself; or let it: `claude mcp add`")
            }
            Self::Zed => Some("settings with comments are not changed: add what is printed by hand"),
            Self::Cursor | Self::VsCode | Self::Windsurf | Self::Codex => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn words_are_those_of_the_command_line() {
        for agent in Agent::ALL {
            assert_eq!(agent.to_possible_value().unwrap().get_name(), agent.word());
        }
        assert_eq!(Agent::value_variants(), Agent::ALL);
    }

    #[test]
    fn files_are_below_home_or_where_configuration_is() {
        let around = Surroundings { home: "/home/a".into(), config_home: None };
        assert_eq!(Agent::Cursor.file(&around), Path::new("/home/a/.cursor/mcp.json"));
        assert_eq!(Agent::VsCode.file(&around), Path::new("/home/a/.config/Code/User/mcp.json"));
        let around = Surroundings { config_home: Some("/etc/a".into()), ..around };
        assert_eq!(Agent::Zed.file(&around), Path::new("/etc/a/zed/settings.json"));
        assert_eq!(Agent::Codex.file(&around), Path::new("/home/a/.codex/config.toml"));
    }
}
