//! Which provider runs a new VM: the preferred one, or the strongest class proven on this host, never less than was asked for.

use offshoot_provider::Capabilities;
use offshoot_types::{ErrorCode, Failure, IsolationClass, ProviderChoice, ProviderKind};

/// `offered` is in order of preference among equal classes. Where the caller has none, `preferred` is meant, unless more is
/// asked for than it gives.
pub(crate) fn choose(
    offered: &[Capabilities],
    preferred: Option<ProviderKind>,
    choice: ProviderChoice,
    min: Option<IsolationClass>,
) -> Result<(ProviderKind, IsolationClass), Failure> {
    let gives = |kind| offered.iter().find(|c| c.kind == kind).and_then(|c| c.isolation.clone().ok());
    let enough = |kind: &ProviderKind| min.is_none_or(|min| gives(*kind).is_none_or(|class| class >= min));
    let choice = match (choice, preferred.filter(enough)) {
        (ProviderChoice::Auto, Some(preferred)) => ProviderChoice::Named(preferred),
        (choice, _) => choice,
    };
    let (kind, class) = match choice {
        ProviderChoice::Auto => strongest(offered).ok_or_else(|| {
            let why: Vec<String> = offered.iter().filter_map(reason).collect();
            let mut failure = Failure::new(ErrorCode::Unavailable, "no provider of this host can run a VM")
                .hint("`offshoot doctor` says what is missing and how to get it");
            failure.cause = (!why.is_empty()).then(|| why.join("; "));
            failure
        })?,
        ProviderChoice::Named(kind) => named(offered, kind)?,
    };
    match min {
        Some(min) if class < min => {
            let message =
                format!("isolation of at least `{min}` is asked for, and this host gives `{class}`");
            let mut failure = Failure::new(ErrorCode::Unavailable, message)
                .hint("`offshoot doctor` says why; ask for less only if the code may be trusted that far");
            let notes = offered.iter().find(|c| c.kind == kind).map(|c| c.notes.join("; "));
            failure.cause = notes.filter(|notes| !notes.is_empty());
            Err(failure)
        }
        _ => Ok((kind, class)),
    }
}

/// The first of the strongest.
pub(crate) fn strongest(offered: &[Capabilities]) -> Option<(ProviderKind, IsolationClass)> {
    let proven = offered.iter().filter_map(|c| Some((c.kind, *c.isolation.as_ref().ok()?)));
    proven.reduce(|best, next| if next.1 > best.1 { next } else { best })
}

fn named(offered: &[Capabilities], kind: ProviderKind) -> Result<(ProviderKind, IsolationClass), Failure> {
    let Some(found) = offered.iter().find(|c| c.kind == kind) else {
        let known: Vec<String> = offered.iter().map(|c| format!("`{}`", c.kind)).collect();
        let message = format!("provider `{kind}` is not part of this daemon");
        return Err(Failure::new(ErrorCode::Unavailable, message)
            .hint(format!("there is {}; `auto` picks the strongest", known.join(", "))));
    };
    match &found.isolation {
        Ok(class) => Ok((kind, *class)),
        Err(why) => {
            Err(Failure::new(ErrorCode::Unavailable, format!("provider `{kind}` does not work here: {why}"))
                .hint("`offshoot doctor` says what is missing and how to get it"))
        }
    }
}

fn reason(capabilities: &Capabilities) -> Option<String> {
    capabilities.isolation.as_ref().err().map(|why| format!("{}: {why}", capabilities.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use IsolationClass::{EmulatedVm, HardwareVm, UserSpaceKernel};

    fn offer(kind: ProviderKind, isolation: Result<IsolationClass, &str>) -> Capabilities {
        Capabilities {
            kind,
            isolation: isolation.map_err(String::from),
            vmm: None,
            notes: vec![],
            pause: true,
            live_snapshot: false,
            disk: false,
        }
    }

    #[test]
    fn auto_picks_the_strongest_proven_class_and_the_first_among_equals() {
        let offered = [
            offer(ProviderKind::Gvisor, Ok(UserSpaceKernel)),
            offer(ProviderKind::Firecracker, Err("/dev/kvm is missing")),
            offer(ProviderKind::Qemu, Ok(EmulatedVm)),
            offer(ProviderKind::CloudHypervisor, Ok(EmulatedVm)),
        ];
        let chosen = choose(&offered, None, ProviderChoice::Auto, None).unwrap();
        assert_eq!(chosen, (ProviderKind::Qemu, EmulatedVm));
    }

    #[test]
    fn the_preferred_provider_is_taken_where_none_is_named_unless_it_gives_too_little() {
        let offered =
            [offer(ProviderKind::Qemu, Ok(EmulatedVm)), offer(ProviderKind::Gvisor, Ok(UserSpaceKernel))];
        let preferred = Some(ProviderKind::Gvisor);
        let choose = |choice, min| choose(&offered, preferred, choice, min).map(|(kind, _)| kind);
        assert_eq!(choose(ProviderChoice::Auto, None), Ok(ProviderKind::Gvisor));
        assert_eq!(choose(ProviderChoice::Auto, Some(UserSpaceKernel)), Ok(ProviderKind::Gvisor));
        assert_eq!(choose(ProviderChoice::Auto, Some(EmulatedVm)), Ok(ProviderKind::Qemu));
        assert_eq!(choose(ProviderChoice::Named(ProviderKind::Qemu), None), Ok(ProviderKind::Qemu));
        let broken =
            [offer(ProviderKind::Qemu, Ok(EmulatedVm)), offer(ProviderKind::Gvisor, Err("no runsc"))];
        let refused = super::choose(&broken, preferred, ProviderChoice::Auto, None).unwrap_err();
        assert!(refused.message.contains("no runsc"), "not another one in its place: {refused:?}");
    }

    #[test]
    fn less_isolation_than_asked_for_is_refused_never_lowered() {
        let offered = [offer(ProviderKind::Qemu, Ok(EmulatedVm))];
        for choice in [ProviderChoice::Auto, ProviderChoice::Named(ProviderKind::Qemu)] {
            let refused = choose(&offered, None, choice, Some(HardwareVm)).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unavailable);
            assert!(refused.hint.is_some());
            choose(&offered, None, choice, Some(EmulatedVm)).unwrap();
        }
    }

    #[test]
    fn an_absent_or_broken_provider_is_named_with_the_reason() {
        let offered = [offer(ProviderKind::Qemu, Err("install qemu-system-x86"))];
        let absent = choose(&offered, None, ProviderChoice::Named(ProviderKind::Fake), None).unwrap_err();
        assert_eq!(absent.message, "provider `fake` is not part of this daemon");
        let broken = choose(&offered, None, ProviderChoice::Named(ProviderKind::Qemu), None).unwrap_err();
        assert!(broken.message.contains("install qemu-system-x86"));
        let none = choose(&offered, None, ProviderChoice::Auto, None).unwrap_err();
        assert!(none.cause.unwrap().contains("install qemu-system-x86"));
    }
}
