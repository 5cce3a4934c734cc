//! The real binary against a real daemon whose VMs are in memory: what verbs print, keep and exit with.

mod attempts;
mod branches;
mod copies;
mod fixture;
mod history;
mod lifecycle;
mod ports;
mod processes;
