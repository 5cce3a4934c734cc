//! Just enough of ELF64 (little-endian) to judge a kernel and an agent: program headers and notes.
//!
//! The input may be anything at all, so every offset is checked and nothing is allocated from it.

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const X86_64: u16 = 62;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the entry point of a PVH boot.
const PVH_ENTRY: u32 = 18;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    #[error("not a 64-bit little-endian ELF file")]
    Magic,
    #[error("an ELF file for machine {machine}, not x86-64 ({X86_64})")]
    Machine { machine: u16 },
    #[error("the ELF program headers lie outside the file")]
    ProgramHeaders,
}

pub(crate) struct Elf<'a> {
    file: &'a [u8],
    /// One slice per program header, each `PROGRAM_HEADER` long.
    headers: Vec<&'a [u8]>,
}

impl<'a> Elf<'a> {
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        if file.len() < HEADER || !file.starts_with(MAGIC) {
            return Err(ElfError::Magic);
        }
        let machine = u16_at(file, 18);
        if machine != X86_64 {
            return Err(ElfError::Machine { machine });
        }
        let offset = u64_at(file, 32);
        let (size, count) = (usize::from(u16_at(file, 54)), usize::from(u16_at(file, 56)));
        let table = usize::try_from(offset)
            .ok()
            .filter(|_| size >= PROGRAM_HEADER)
            .and_then(|start| file.get(start..start.checked_add(size * count)?))
            .ok_or(ElfError::ProgramHeaders)?;
        Ok(Self { file, headers: table.chunks_exact(size).map(|h| &h[..PROGRAM_HEADER]).collect() })
    }

    pub(crate) fn asks_for_interpreter(&self) -> bool {
        self.headers.iter().any(|header| u32_at(header, 0) == PT_INTERP)
    }

    /// Whether the file says where a PVH boot enters it.
    pub(crate) fn has_pvh_entry(&self) -> bool {
        self.headers
            .iter()
            .filter(|header| u32_at(header, 0) == PT_NOTE)
            .filter_map(|header| {
                let start = usize::try_from(u64_at(header, 8)).ok()?;
                let size = usize::try_from(u64_at(header, 32)).ok()?;
                self.file.get(start..start.checked_add(size)?)
            })
            .any(|notes| notes_contain(notes, b"Xen\0", PVH_ENTRY))
    }
}

/// Notes are {name size, content size, type, name, content}, name and content padded to 4 bytes.
fn notes_contain(mut notes: &[u8], name: &[u8], kind: u32) -> bool {
    while notes.len() >= 12 {
        let name_size = u32_at(notes, 0) as usize;
        let content_size = u32_at(notes, 4) as usize;
        if u32_at(notes, 8) == kind && notes[12..].get(..name_size) == Some(name) {
            return true;
        }
        // Sizes come from 32 bits, so neither rounding nor adding overflows a 64-bit `usize`.
        let next = 12 + name_size.next_multiple_of(4) + content_size.next_multiple_of(4);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, PartialEq)]
    pub(crate) enum Note {
        None,
        Pvh,
        Interpreter,
    }

    /// The smallest program with one program header of the wanted kind.
    pub(crate) fn program(note: Note) -> Vec<u8> {
        let mut file = vec![0; HEADER + PROGRAM_HEADER];
        file[..6].copy_from_slice(MAGIC);
        file[18] = X86_64 as u8;
        file[32] = HEADER as u8;
        file[54] = PROGRAM_HEADER as u8;
        file[56] = 1;
        let start = file.len() as u8;
        let (kind, content) = match note {
            Note::None => (1, Vec::new()),
            Note::Interpreter => (PT_INTERP, b"/lib/ld.so\0".to_vec()),
            Note::Pvh => {
                let mut notes = Vec::new();
                for (kind, name) in [(1_u32, &b"GNU\0"[..]), (PVH_ENTRY, b"Xen\0")] {
                    notes.extend(4_u32.to_le_bytes());
                    notes.extend(8_u32.to_le_bytes());
                    notes.extend(kind.to_le_bytes());
                    notes.extend(name);
                    notes.extend([0; 8]);
                }
                (PT_NOTE, notes)
            }
        };
        file[HEADER] = kind as u8;
        file[HEADER + 8] = start;
        file[HEADER + 32] = content.len() as u8;
        file.extend(content);
        file
    }

    #[test]
    fn a_pvh_kernel_is_told_from_other_programs() {
        assert!(Elf::parse(&program(Note::Pvh)).unwrap().has_pvh_entry());
        assert!(!Elf::parse(&program(Note::None)).unwrap().has_pvh_entry());
        assert!(Elf::parse(&program(Note::Interpreter)).unwrap().asks_for_interpreter());
        let mut arm = program(Note::Pvh);
        arm[18] = 183;
        assert_eq!(Elf::parse(&arm).err(), Some(ElfError::Machine { machine: 183 }));
    }

    proptest! {
        #[test]
        fn damaged_files_are_judged_without_a_panic(at in 0_usize..160, byte: u8, cut in 0_usize..200) {
            let mut file = program(Note::Pvh);
            if let Some(place) = file.get_mut(at) { *place = byte }
            file.truncate(cut);
            if let Ok(elf) = Elf::parse(&file) {
                elf.has_pvh_entry();
                elf.asks_for_interpreter();
            }
        }
    }
}
