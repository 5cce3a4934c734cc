//! Templates: images and snapshots under the names clients know. They are built by `offshoot image build`, not over the wire.

use super::{asked::Id, branches, error::Refused, view::ENVD_VERSION, wire::Template};
use crate::http::Call;
use axum::{Json, http::StatusCode};
use jiff::Timestamp;
use offshoot_api::v1::{self, DEFAULT_CPUS, DEFAULT_DISK};
use offshoot_types::{Command, ErrorCode, Failure};
use serde_json::{Value, json};

async fn images(call: &Call) -> Result<Vec<v1::Image>, Failure> {
    let _read = call.permit(Command::Inspect { vm: None }).await?;
    let mut images = call.app.images.list().await?;
    images.retain(|image| !image.tags.is_empty());
    Ok(images)
}

fn template(image: &v1::Image) -> Template {
    let mut names = image.tags.clone();
    if names.iter().any(|name| name == "interpreter") {
        names.push("code-interpreter-v1".into());
    }
    let made = image.created.unwrap_or(Timestamp::UNIX_EPOCH);
    Template {
        template: image.tags[0].clone(),
        build: image.digest.to_string(),
        aliases: names.clone(),
        names,
        public: true,
        cpu_count: DEFAULT_CPUS.get(),
        memory: image.default_memory_mib,
        disk: DEFAULT_DISK,
        created_at: made,
        updated_at: made,
        last_spawned_at: None,
        spawn_count: 0,
        build_count: 1,
        envd_version: ENVD_VERSION,
        build_status: "ready",
    }
}

pub async fn list(call: Call) -> Result<Json<Vec<Template>>, Refused> {
    Ok(Json(images(&call).await?.iter().map(template).collect()))
}

async fn find(call: &Call, name: &str) -> Result<Option<Template>, Failure> {
    let mut all = images(call).await?.iter().map(template).collect::<Vec<_>>().into_iter();
    Ok(all.find(|template| template.names.iter().any(|own| own == name) || template.build == name))
}

pub async fn show(call: Call, Id(id): Id) -> Result<Json<Template>, Refused> {
    let found = find(&call, &id).await?;
    Ok(Json(found.ok_or_else(|| absent(&id))?))
}

/// Whether a name is taken, and by what.
pub async fn alias(call: Call, Id(alias): Id) -> Result<Json<Value>, Refused> {
    if let Some(template) = find(&call, &alias).await? {
        return Ok(Json(json!({ "templateID": template.template, "public": true })));
    }
    match branches::find_snapshot(&call, &alias).await? {
        Some(snapshot) => Ok(Json(json!({ "templateID": snapshot.id.to_string(), "public": false }))),
        None => Err(absent(&alias).into()),
    }
}

/// Of a snapshot. An image is removed by `offshoot image rm`.
pub async fn remove(call: Call, Id(id): Id) -> Result<StatusCode, Refused> {
    if find(&call, &id).await?.is_some() {
        let failure =
            Failure::new(ErrorCode::Unsupported, format!("template `{id:.80}` is an image of this host"));
        return Err(Refused::with(StatusCode::FORBIDDEN, failure.hint("`offshoot image rm` removes it")));
    }
    branches::remove(&call, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn absent(name: &str) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("template '{name:.80}' not found"))
}

pub async fn unsupported(_: Call) -> Refused {
    let failure = Failure::new(ErrorCode::Unsupported, "templates are not built over this API");
    Refused::from(failure.hint("build an image with `offshoot image build`, or keep a sandbox as a snapshot"))
        .once()
}

pub async fn no_volumes(_: Call) -> Refused {
    let failure = Failure::new(ErrorCode::Unsupported, "volumes are not there yet");
    Refused::from(failure.hint("a sandbox's disk stays with it, and with its snapshots and forks")).once()
}

pub async fn no_secrets(_: Call) -> Refused {
    Refused::from(Failure::new(ErrorCode::Unsupported, "secrets are not there yet")).once()
}
