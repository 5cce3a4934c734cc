use crate::{
    agent,
    context::Context,
    exit_code::Status,
    failure::{Result, Stop, file, host, usage},
    printer::Printer,
    progress::Progress,
    trace::TraceEvent,
    view::{self, Table},
};
use clap::Subcommand;
use jiff::Timestamp;
use offshoot_image::{
    BuildError, BuildOptions, Cancel, Image, Packages, Progress as Event, Recipe, RecipeError, Store,
};
use offshoot_types::{ErrorCode, Failure, ImageRef};
use serde::Serialize;
use std::{error::Error, path::PathBuf};
use tokio::{sync::mpsc, task::spawn_blocking};

const EXAMPLES: &str = "Examples:
  offshoot image build base
  offshoot image build ./my-recipe.toml
  offshoot image list
  offshoot image rm base

Images are kept in OFFSHOOT_IMAGES [default: ~/.cache/offshoot/images] and shared by all state directories.";

/// Build, list and check images
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build an image from a recipe, unless it is there and current
    ///
    /// An interrupted build leaves no image; the next one goes on where it ended.
    Build {
        #[arg(value_name = "RECIPE", default_value = "base", help = recipe_help())]
        recipe: String,
        /// Fetch the kernel and all packages again
        #[arg(long)]
        fresh: bool,
    },
    /// List all images
    #[command(visible_alias = "ls")]
    List,
    /// Show what an image consists of and came from
    Show {
        #[arg(value_name = "IMAGE")]
        image: ImageRef,
    },
    /// Remove a tag, and the image with its last one; refused while VMs use it
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(value_name = "IMAGE")]
        image: ImageRef,
    },
    /// Read all parts of an image and compare them with their digests
    Verify {
        #[arg(value_name = "IMAGE")]
        image: ImageRef,
    },
}

fn recipe_help() -> String {
    format!("A recipe that comes with offshoot ({}), or the path of one", Recipe::built_in_words())
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    match args.action {
        Action::Build { recipe, fresh } => build(context, recipe, fresh).await?,
        Action::List => list(context)?,
        Action::Show { image } => show(context, &image)?,
        Action::Rm { image } => remove(context, &image).await?,
        Action::Verify { image } => verify(context, image).await?,
    }
    Ok(Status::DONE)
}

fn store() -> Result<Store> {
    Ok(Store::open(Store::default_root()?)?)
}

// ---------------------------------------------------------------- build

/// `image build --json`, `image verify --json`.
#[derive(Debug, Serialize)]
struct Done {
    digest: String,
    tags: Vec<String>,
    size_bytes: u64,
}

impl From<&Image> for Done {
    fn from(image: &Image) -> Self {
        Self { digest: image.digest.to_string(), tags: image.tags.clone(), size_bytes: image.size() }
    }
}

async fn build(context: &Context, recipe: String, fresh: bool) -> Result {
    let recipe = Recipe::load(&recipe).map_err(|error| unusable_recipe(&error))?;
    let (store, agent) = (store()?, agent::binary()?);
    let cancel = Cancel::new().map_err(|error| host("cannot start a build", &error))?;
    let packages = if fresh { Packages::Fresh } else { Packages::Reuse };
    let options = BuildOptions { packages, cancel: Some(cancel.clone()) };
    let progress = context.printer.progress(format!("building image `{}`", recipe.name));
    let (sender, mut told) = mpsc::unbounded_channel();
    let mut building = spawn_blocking(move || {
        offshoot_image::build(&store, &recipe, &agent, &options, &mut |event| {
            // Nobody listens any more once the person has left.
            let _ = sender.send(Told::from(event));
        })
    });
    let built = progress
        .during(async {
            let mut deadline = std::pin::pin!(expired(context));
            let mut reason = None;
            loop {
                tokio::select! {
                    biased;
                    Some(event) = told.recv() => event.tell(&progress),
                    // The build tidies up after itself, then returns.
                    _ = context.interrupt.arrived(), if reason.is_none() => {
                        reason = Some(Stop::Interrupted);
                        cancel.cancel();
                    }
                    stop = &mut deadline, if reason.is_none() => {
                        reason = Some(stop);
                        cancel.cancel();
                    }
                    built = &mut building => return (built, reason),
                }
            }
        })
        .await;
    drop(progress);
    let image = match built {
        (Ok(Ok(image)), _) => image,
        (Ok(Err(BuildError::Cancelled)), Some(reason)) => return Err(reason),
        (Ok(Err(error)), _) => return Err(error.failure().into()),
        (Err(error), _) => return Err(host("the build ended without a result", &error).into()),
    };
    context.printer.answer(&Done::from(&image), || image.digest.to_string())
}

async fn expired(context: &Context) -> Stop {
    match context.deadline {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            Failure::new(ErrorCode::Timeout, format!("the image was not built within {limit:?}"))
                .hint("what is finished is kept: the next build goes on from there")
                .into()
        }
        None => std::future::pending().await,
    }
}

fn unusable_recipe(error: &RecipeError) -> Failure {
    let code = match error {
        RecipeError::Unknown { .. } => ErrorCode::NotFound,
        RecipeError::Read { path, source } => return file("read the recipe", path, source.kind()),
        RecipeError::Invalid { .. } => ErrorCode::InvalidArgument,
    };
    let failure = Failure::new(code, error.to_string());
    match error.source() {
        Some(source) => failure.caused_by(source),
        None => failure.hint("`offshoot image build base` builds the usual one"),
    }
}

/// A build's progress, owned, on its way to the screen.
/// Builds those of these images that are not there, telling how far it is. Blocks.
pub fn build_missing(printer: &Printer, names: &[&str]) -> Result {
    let (store, agent) = (store()?, agent::binary()?);
    for name in names {
        if store.resolve(&ImageRef::Tag((*name).into())).is_ok() {
            continue;
        }
        let recipe = Recipe::load(name).map_err(|error| unusable_recipe(&error))?;
        printer.note(&format!("building image `{name}`, which takes some minutes"));
        let options = BuildOptions { packages: Packages::Reuse, cancel: None };
        let mut tell = |event: Event<'_>| {
            if let Told::Stage(text) = Told::from(event) {
                printer.note(&text);
            }
        };
        offshoot_image::build(&store, &recipe, &agent, &options, &mut tell)
            .map_err(|error| Stop::from(error.failure()))?;
    }
    Ok(())
}

#[derive(Debug)]
enum Told {
    Stage(String),
    Line(String),
}

impl From<Event<'_>> for Told {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Started { stage, position, of } => {
                Self::Stage(format!("[{position}/{of}] {}", stage.describe()))
            }
            Event::Waiting { stage } => {
                Self::Stage(format!("{}: waiting for another build of the same", stage.describe()))
            }
            Event::Line { text, .. } => Self::Line(text.to_owned()),
            Event::Finished { stage, took } => {
                Self::Stage(format!("{} took {:.1} s", stage.describe(), took.as_secs_f64()))
            }
            Event::Reused { stage } => Self::Stage(format!("{}: done by an earlier build", stage.describe())),
        }
    }
}

impl Told {
    fn tell(self, progress: &Progress) {
        match self {
            Self::Stage(text) => {
                TraceEvent::ImageStage { stage: &text }.emit();
                progress.message(text);
            }
            Self::Line(line) => TraceEvent::ImageLine { line: &line }.emit(),
        }
    }
}

// ---------------------------------------------------------------- look

/// `image list --json`.
#[derive(Debug, Serialize)]
struct List {
    images: Vec<Listed>,
    broken: Vec<Broken>,
}

#[derive(Debug, Serialize)]
struct Listed {
    digest: String,
    tags: Vec<String>,
    size_bytes: u64,
    default_memory_mib: u64,
    kernel: String,
    created: Timestamp,
}

#[derive(Debug, Serialize)]
struct Broken {
    digest: String,
    problem: Failure,
}

fn list(context: &Context) -> Result {
    let listing = store()?.list()?;
    let list = List {
        images: listing.images.iter().map(listed).collect(),
        broken: listing
            .broken
            .iter()
            .map(|(digest, error)| Broken { digest: digest.to_string(), problem: error.failure() })
            .collect(),
    };
    if context.printer.is_json() {
        return context.printer.document(&list);
    }
    for (digest, error) in &listing.broken {
        context.printer.warn(&format!("image {} cannot be read: {error}", digest.short()));
    }
    if listing.images.is_empty() {
        context.printer.note("no images; build one with `offshoot image build base`");
        return Ok(());
    }
    let mut table = Table::new(&["TAG", "DIGEST", "SIZE", "MEMORY", "KERNEL", "CREATED"]);
    for image in &listing.images {
        let manifest = &image.manifest;
        table.row([
            if image.tags.is_empty() { "-".into() } else { image.tags.join(",") },
            image.digest.short().into(),
            view::size(image.size()),
            manifest.default_memory.to_string(),
            manifest.kernel_release.clone(),
            manifest.created.strftime("%Y-%m-%d").to_string(),
        ]);
    }
    context.printer.data(&table.render())
}

fn listed(image: &Image) -> Listed {
    Listed {
        digest: image.digest.to_string(),
        tags: image.tags.clone(),
        size_bytes: image.size(),
        default_memory_mib: image.manifest.default_memory.into(),
        kernel: image.manifest.kernel_release.clone(),
        created: image.manifest.created,
    }
}

/// `image show --json`.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    image: &'a Image,
    files: Vec<PathBuf>,
}

fn show(context: &Context, image: &ImageRef) -> Result {
    let image = store()?.resolve(image)?;
    let manifest = &image.manifest;
    let files = manifest.parts.iter().map(|(kind, _)| image.part(kind)).collect();
    context.printer.answer(&Shown { image: &image, files }, || {
        let mut lines = vec![
            ("digest", image.digest.to_string()),
            ("tags", image.tags.join(" ")),
            ("created", manifest.created.to_string()),
            ("built by", format!("offshoot {}", manifest.offshoot)),
            ("memory", manifest.default_memory.to_string()),
            ("kernel", manifest.kernel_release.clone()),
            ("agent", format!("{} ({})", manifest.agent.version, manifest.agent.digest)),
            ("recipe", format!("{} on {}", manifest.recipe.name, manifest.recipe.suite)),
            ("packages", manifest.packages.len().to_string()),
        ];
        let parts: Vec<_> = manifest.parts.iter().collect();
        let names: Vec<String> = parts.iter().map(|(kind, _)| kind.to_string()).collect();
        for (name, (_, part)) in names.iter().zip(&parts) {
            lines.push((name, format!("{}, {}", view::size(part.size), part.digest)));
        }
        view::fields(&lines)
    })
}

async fn verify(context: &Context, image: ImageRef) -> Result {
    let store = store()?;
    let image = store.resolve(&image)?;
    let done = Done::from(&image);
    let progress = context.printer.progress("reading all parts");
    let verifying = progress.during(async {
        spawn_blocking(move || store.verify(&image))
            .await
            .map_err(|error| host("the check ended without a result", &error))?
            .map_err(Stop::from)
    });
    context.abandonable("the check", verifying).await?;
    context.printer.answer(&done, || format!("{} is undamaged", done.digest))
}

// ---------------------------------------------------------------- rm

/// `image rm --json`.
#[derive(Debug, Serialize)]
struct Removed {
    removed: String,
}

/// The daemon removes it, since it knows which VMs use it.
async fn remove(context: &Context, image: &ImageRef) -> Result {
    // Known here before a daemon is started for it.
    let store = store()?;
    store.resolve(image)?;
    let client = context.client().await?;
    let removing = async {
        let theirs = client.daemon().await?.images_dir;
        if theirs.canonicalize().ok() != store.root().canonicalize().ok() {
            return Err(usage(format!(
                "the daemon keeps images in `{}`, OFFSHOOT_IMAGES here is `{}`",
                theirs.display(),
                store.root().display()
            ))
            .hint("use the same for both")
            .into());
        }
        Ok(client.remove_image(image).await?)
    };
    context.abandonable("the removal", removing).await?;
    context.printer.answer(&Removed { removed: image.to_string() }, || image.to_string())
}
