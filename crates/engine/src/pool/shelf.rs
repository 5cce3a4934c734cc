//! What is kept for one key: its template, the instances that are ready, and how that went so far.

use super::{Key, Member, size::Demand};
use crate::snapshots::Source;
use offshoot_types::{SnapshotId, VmSpec};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Failures in a row after which a template is made anew.
const HOPELESS: u32 = 3;
/// The longest pause after a failure.
const LONGEST: Duration = Duration::from_secs(60 * 60);

#[derive(Debug)]
pub(super) struct Shelf {
    pub key: Key,
    /// Of the VM that wanted an instance first: what a template is booted as.
    pub spec: VmSpec,
    pub template: Template,
    members: Vec<Member>,
    pub demand: Demand,
    pub trouble: Trouble,
    pub claimed: u64,
    pub missed: u64,
}

#[derive(Debug)]
pub(super) enum Template {
    Absent,
    Ready {
        id: SnapshotId,
        /// Checked and in memory, as long as somebody wants it.
        source: Option<Arc<Source>>,
    },
}

/// Failures since the last success.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    why: Option<String>,
    in_a_row: u32,
    until: Option<Instant>,
}

impl Trouble {
    pub fn add(&mut self, why: &str, retry: Duration, now: Instant) {
        let pause = retry.saturating_mul(1 << self.in_a_row.min(16)).min(LONGEST);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.why = Some(why.to_owned());
        self.until = Some(now + pause);
    }
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
    /// Whether the template itself may be what is wrong.
    pub fn is_hopeless(&self) -> bool {
        self.in_a_row >= HOPELESS
    }
}

impl Shelf {
    pub fn new(key: Key, spec: VmSpec) -> Self {
        Self {
            key,
            spec,
            template: Template::Absent,
            members: Vec::new(),
            demand: Demand::default(),
            trouble: Trouble::default(),
            claimed: 0,
            missed: 0,
        }
    }

    pub fn ready(&self) -> usize {
        self.members.iter().filter(|member| member.is_alive()).count()
    }

    /// The one that is ready longest. Those that have died are dropped, which ends them.
    pub fn take(&mut self) -> Option<Member> {
        self.members.retain(Member::is_alive);
        (!self.members.is_empty()).then(|| self.members.remove(0))
    }

    pub fn put(&mut self, member: Member) {
        self.members.push(member);
        self.trouble = Trouble::default();
    }

    /// Those beyond `target`, and those that have died.
    pub fn surplus(&mut self, target: u32) -> Vec<Member> {
        let (alive, mut surplus): (Vec<_>, Vec<_>) = self.members.drain(..).partition(Member::is_alive);
        self.members = alive;
        if self.members.len() > target as usize {
            surplus.extend(self.members.drain(target as usize..));
        }
        surplus
    }

    /// Nobody wants it for the time being: its memory is not kept.
    pub fn let_go(&mut self) {
        if let Template::Ready { source, .. } = &mut self.template {
            *source = None;
        }
    }

    pub fn usable_template(&self) -> Option<(SnapshotId, Option<Arc<Source>>)> {
        match &self.template {
            Template::Ready { id, source } if self.trouble.in_a_row == 0 => Some((*id, source.clone())),
            Template::Ready { .. } | Template::Absent => None,
        }
    }

    /// It will be made anew.
    pub fn forget_template(&mut self) -> Option<SnapshotId> {
        match std::mem::replace(&mut self.template, Template::Absent) {
            Template::Ready { id, .. } => Some(id),
            Template::Absent => None,
        }
    }

    /// Why a start found none.
    pub fn why_none(&self) -> String {
        let what = match &self.template {
            Template::Absent => "there was no template of its image in its size yet",
            Template::Ready { .. } => "no instance was ready",
        };
        match self.trouble.why() {
            Some(why) => format!("{what}: {why}"),
            None => what.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_a_failure_doubles_up_to_a_bound_and_a_third_one_is_the_templates_fault() {
        let (now, retry) = (Instant::now(), Duration::from_secs(5));
        let mut trouble = Trouble::default();
        assert_eq!((trouble.until(), trouble.is_hopeless()), (None, false));
        for (pause, hopeless) in [(5, false), (10, false), (20, true), (40, true)] {
            trouble.add("no", retry, now);
            assert_eq!(trouble.until(), Some(now + Duration::from_secs(pause)));
            assert_eq!(trouble.is_hopeless(), hopeless);
        }
        for _ in 0..40 {
            trouble.add("still no", retry, now);
        }
        assert_eq!((trouble.until(), trouble.why()), (Some(now + LONGEST), Some("still no")));
    }
}
