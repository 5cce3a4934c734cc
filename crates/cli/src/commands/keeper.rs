use std::path::PathBuf;

/// Watch over one VM (started by the daemon)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    pub spec: PathBuf,
}
