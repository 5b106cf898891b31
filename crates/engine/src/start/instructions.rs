//! Instruction set of the CPU kernels: the widest of the processor, or the lower one that a job asks for.

use crate::error::Error;
use flashjob_config::InstructionSet;
use flashjob_cpu::Isa;

/// The set that was asked for, or the widest that this processor has.
///
/// # Errors
/// [`Error::Setting`] where it does not have what was asked for.
pub fn instructions(asked: Option<InstructionSet>) -> Result<Isa, Error> {
    match asked {
        Some(asked) => out_of(&Isa::available(), asked),
        None => Ok(Isa::detect()),
    }
}

fn out_of(available: &[Isa], asked: InstructionSet) -> Result<Isa, Error> {
    let isa = match asked {
        InstructionSet::Avx512 => Isa::Avx512,
        InstructionSet::Avx2 => Isa::Avx2,
        InstructionSet::Portable => Isa::Portable,
    };
    if available.contains(&isa) {
        return Ok(isa);
    }
    let has: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
    Err(Error::Setting(format!(
        "FLASHJOB_ISA is `{asked}`, but this processor has {} only; leave the variable out to use the first of them",
        has.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_lacks_is_refused() {
        let available = [Isa::Avx2, Isa::Portable];
        assert_eq!(out_of(&available, InstructionSet::Avx2).unwrap(), Isa::Avx2);
        assert_eq!(out_of(&available, InstructionSet::Portable).unwrap(), Isa::Portable);
        let error = out_of(&available, InstructionSet::Avx512).unwrap_err().to_string();
        assert!(error.contains("`avx512`") && error.contains("avx2+fma+f16c, portable"), "{error}");
    }
}
