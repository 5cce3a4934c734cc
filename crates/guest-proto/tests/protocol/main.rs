//! Client and server together, over a port that behaves like virtio-serial; and each against a hostile peer.

mod epochs;
mod health;
mod hostile;
mod operations;
mod port;
mod state;
mod toy;
