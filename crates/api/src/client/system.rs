//! The daemon, its events and its images.

use super::{Client, ClientError, connection::query};
use crate::v1::{Daemon, EventPage, EventQuery, Health, ImageList, ImageVerified, StopDaemon, Stopping};
use http::Method;
use offshoot_types::ImageRef;

impl Client {
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/v1/health").await
    }

    pub async fn daemon(&self) -> Result<Daemon, ClientError> {
        self.get("/v1/daemon").await
    }

    pub async fn stop_daemon(&self, request: &StopDaemon) -> Result<Stopping, ClientError> {
        self.json(Method::POST, "/v1/daemon/stop", Some(request)).await
    }

    /// One long poll; continue with `next_after` of the page.
    pub async fn events(&self, request: &EventQuery) -> Result<EventPage, ClientError> {
        self.get(&query("/v1/events", request)).await
    }

    pub async fn images(&self) -> Result<ImageList, ClientError> {
        self.get("/v1/images").await
    }

    pub async fn remove_image(&self, image: &ImageRef) -> Result<(), ClientError> {
        self.empty(Method::DELETE, &format!("/v1/images/{image}"), None::<&()>).await
    }

    pub async fn verify_image(&self, image: &ImageRef) -> Result<ImageVerified, ClientError> {
        self.json(Method::POST, &format!("/v1/images/{image}/verify"), None::<&()>).await
    }

    /// The OpenAPI document, as served.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/v1/openapi.json").await
    }
}
