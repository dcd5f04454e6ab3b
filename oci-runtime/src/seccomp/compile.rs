//! A profile's rules to a BPF program.
//!
//! The program loads the architecture, then finds the verdict for the call's number by binary search: neighbouring
//! numbers with one verdict are one range, so that a profile of hundreds of names takes about seven comparisons.

use super::syscalls::{Architecture, X32_BIT};
use linux::seccomp::{Instruction, Program};
use std::collections::BTreeMap;

/// A comparison of one argument; all of a rule's must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub operator: Operator,
    /// What is compared with; the mask for [`Operator::MaskedEqual`].
    pub value: u64,
    /// What is left after the mask.
    pub masked: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    MaskedEqual,
}

/// What is done with one system call's number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Rules with conditions, and their `SECCOMP_RET_*` value; the first that holds counts.
    pub conditional: Vec<(Vec<Condition>, u32)>,
    /// A rule without conditions, which counts instead of those with.
    pub always: Option<u32>,
}

/// One architecture's rules by number.
pub(crate) type Rules = BTreeMap<u32, Verdict>;

/// What a filter says.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub architectures: BTreeMap<Architecture, Rules>,
    /// For calls without a rule.
    pub default: u32,
    /// For calls of other architectures.
    pub foreign: u32,
    /// For calls above the highest number with a rule, which the profile's author can't have known: `None` is the
    /// default.
    pub unknown: Option<u32>,
}

/// The filter can't be expressed in 4,096 instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong(pub usize);

const MAX_INSTRUCTIONS: usize = 4096;

// struct seccomp_data
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

// Classic BPF
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

fn ret(action: u32) -> Instruction {
    Instruction {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: action,
    }
}

/// `if number-in-accumulator >= k then right else left`, with however long parts.
fn branch(code: u16, k: u32, left: Vec<Instruction>, right: Vec<Instruction>) -> Vec<Instruction> {
    let mut out = Vec::with_capacity(left.len() + right.len() + 2);
    match u8::try_from(left.len()) {
        Ok(skip) => out.push(Instruction {
            code,
            jt: skip,
            jf: 0,
            k,
        }),
        Err(_) => {
            out.push(Instruction {
                code,
                jt: 0,
                jf: 1,
                k,
            });
            out.push(Instruction {
                code: JUMP,
                jt: 0,
                jf: 0,
                k: left.len() as u32,
            });
        }
    }
    out.extend(left);
    out.extend(right);
    out
}

/// Compiles a filter.
pub(crate) fn compile(filter: &Filter) -> Result<Program, TooLong> {
    let mut by_audit: BTreeMap<u32, Vec<Instruction>> = BTreeMap::new();
    for (architecture, rules) in &filter.architectures {
        if *architecture != Architecture::X32 {
            by_audit.insert(
                architecture.audit(),
                number_search(filter, *architecture, rules),
            );
        }
    }
    let mut code = vec![ret(filter.foreign)];
    for (audit, search) in by_audit {
        code = branch(JUMP_EQUAL, audit, code, search);
    }
    code.insert(0, load(OFFSET_ARCH));
    if code.len() > MAX_INSTRUCTIONS {
        return Err(TooLong(code.len()));
    }
    Ok(Program(code))
}

/// One architecture's part: finds the number's range.
fn number_search(filter: &Filter, architecture: Architecture, rules: &Rules) -> Vec<Instruction> {
    let mut leaves: Vec<(u32, Vec<Instruction>)> = Vec::new();
    add_ranges(filter, architecture, rules, 0, &mut leaves);
    if architecture == Architecture::X86_64 {
        match filter.architectures.get(&Architecture::X32) {
            Some(x32) => add_ranges(filter, Architecture::X32, x32, X32_BIT, &mut leaves),
            None => push_leaf(&mut leaves, X32_BIT, vec![ret(filter.foreign)]),
        }
        // A tracer that skips a call sets its number to -1, which is no x32 call.
        push_leaf(&mut leaves, u32::MAX, vec![ret(filter.default)]);
    }
    let mut code = vec![load(OFFSET_NUMBER)];
    code.extend(search(&leaves));
    code
}

fn push_leaf(leaves: &mut Vec<(u32, Vec<Instruction>)>, from: u32, code: Vec<Instruction>) {
    if leaves.last().is_none_or(|(_, last)| *last != code) {
        leaves.push((from, code));
    }
}

/// Adds the ranges of numbers from `base` on, each with its code.
fn add_ranges(
    filter: &Filter,
    architecture: Architecture,
    rules: &Rules,
    base: u32,
    leaves: &mut Vec<(u32, Vec<Instruction>)>,
) {
    let default = vec![ret(filter.default)];
    let mut next = 0;
    for (number, verdict) in rules {
        if *number > next || leaves.is_empty() && *number > 0 {
            push_leaf(leaves, base + next, default.clone());
        }
        push_leaf(
            leaves,
            base + number,
            verdict_code(verdict, filter.default, architecture),
        );
        next = number + 1;
    }
    push_leaf(
        leaves,
        base + next,
        vec![ret(filter.unknown.unwrap_or(filter.default))],
    );
}

fn search(leaves: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    match leaves {
        [] => Vec::new(),
        [(_, code)] => code.clone(),
        _ => {
            let (left, right) = leaves.split_at(leaves.len() / 2);
            let from = right.first().map_or(0, |(from, _)| *from);
            branch(JUMP_GREATER_EQUAL, from, search(left), search(right))
        }
    }
}

fn verdict_code(verdict: &Verdict, default: u32, architecture: Architecture) -> Vec<Instruction> {
    if let Some(action) = verdict.always {
        return vec![ret(action)];
    }
    let mut code = Vec::new();
    for (conditions, action) in &verdict.conditional {
        code.extend(rule_code(conditions, *action, architecture));
    }
    code.push(ret(default));
    code
}

/// Where a comparison goes.
#[derive(Clone, Copy, PartialEq)]
enum Go {
    /// To the instruction after this one.
    On,
    /// Past this condition: it holds.
    Pass,
    /// Past this rule: it doesn't hold.
    Fail,
}

enum Step {
    Plain(Instruction),
    Compare { code: u16, k: u32, yes: Go, no: Go },
}

fn condition_steps(condition: &Condition, wide: bool) -> Vec<Step> {
    let offset = OFFSET_ARGUMENTS + 8 * u32::from(condition.argument);
    // Little endian, as all the architectures here are.
    let (low, high) = (load(offset), load(offset + 4));
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    let (value_low, value_high) = halves(condition.value);
    let compare = |code, k, yes, no| Step::Compare { code, k, yes, no };
    // The upper halves decide unless they are equal.
    let mut steps = Vec::new();
    let unequal_high = |above: Go, below: Go| {
        vec![
            Step::Plain(high),
            compare(JUMP_GREATER, value_high, above, Go::On),
            compare(JUMP_EQUAL, value_high, Go::On, below),
        ]
    };
    use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, MaskedEqual, NotEqual};
    if wide {
        match condition.operator {
            Equal => steps.extend([
                Step::Plain(high),
                compare(JUMP_EQUAL, value_high, Go::On, Go::Fail),
            ]),
            NotEqual => steps.extend([
                Step::Plain(high),
                compare(JUMP_EQUAL, value_high, Go::On, Go::Pass),
            ]),
            Greater | GreaterOrEqual => steps.extend(unequal_high(Go::Pass, Go::Fail)),
            Less | LessOrEqual => steps.extend(unequal_high(Go::Fail, Go::Pass)),
            MaskedEqual => {
                let masked = halves(condition.masked & condition.value).1;
                steps.push(Step::Plain(high));
                steps.push(Step::Plain(Instruction {
                    code: AND,
                    jt: 0,
                    jf: 0,
                    k: value_high,
                }));
                steps.push(compare(JUMP_EQUAL, masked, Go::On, Go::Fail));
            }
        }
    }
    steps.push(Step::Plain(low));
    if condition.operator == MaskedEqual {
        steps.push(Step::Plain(Instruction {
            code: AND,
            jt: 0,
            jf: 0,
            k: value_low,
        }));
    }
    steps.push(match condition.operator {
        Equal => compare(JUMP_EQUAL, value_low, Go::Pass, Go::Fail),
        NotEqual => compare(JUMP_EQUAL, value_low, Go::Fail, Go::Pass),
        Greater => compare(JUMP_GREATER, value_low, Go::Pass, Go::Fail),
        GreaterOrEqual => compare(JUMP_GREATER_EQUAL, value_low, Go::Pass, Go::Fail),
        Less => compare(JUMP_GREATER_EQUAL, value_low, Go::Fail, Go::Pass),
        LessOrEqual => compare(JUMP_GREATER, value_low, Go::Fail, Go::Pass),
        MaskedEqual => compare(
            JUMP_EQUAL,
            halves(condition.masked & condition.value).0,
            Go::Pass,
            Go::Fail,
        ),
    });
    steps
}

/// One rule: all conditions, then its action; falls through to what follows if one fails. At most 6 conditions of at
/// most 6 steps, so every jump fits its byte.
fn rule_code(
    conditions: &[Condition],
    action: u32,
    architecture: Architecture,
) -> Vec<Instruction> {
    let parts: Vec<Vec<Step>> = conditions
        .iter()
        .map(|condition| condition_steps(condition, architecture.wide()))
        .collect();
    let total: usize = parts.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(total + 1);
    let mut end_of_part = 0;
    for part in parts {
        end_of_part += part.len();
        for step in part {
            let here = code.len();
            let distance = |go: Go| {
                let target = match go {
                    Go::On => here + 1,
                    Go::Pass => end_of_part,
                    Go::Fail => total + 1,
                };
                (target - here - 1) as u8
            };
            code.push(match step {
                Step::Plain(instruction) => instruction,
                Step::Compare { code, k, yes, no } => Instruction {
                    code,
                    jt: distance(yes),
                    jf: distance(no),
                    k,
                },
            });
        }
    }
    code.push(ret(action));
    code
}

#[cfg(test)]
pub(crate) mod interpret {
    //! What the kernel does with a program.

    use super::*;

    /// A system call as a filter sees it.
    #[derive(Debug, Clone, Copy)]
    pub struct Call {
        pub number: u32,
        pub audit: u32,
        pub arguments: [u64; 6],
    }

    /// The verdict, and how many instructions it took.
    pub fn run(program: &Program, call: &Call) -> (u32, usize) {
        let word = |offset: u32| match offset {
            OFFSET_NUMBER => call.number,
            OFFSET_ARCH => call.audit,
            _ => {
                let argument = call.arguments[((offset - OFFSET_ARGUMENTS) / 8) as usize];
                if offset.is_multiple_of(8) {
                    argument as u32
                } else {
                    (argument >> 32) as u32
                }
            }
        };
        let (mut accumulator, mut position, mut count) = (0u32, 0usize, 0);
        loop {
            let at = program.0[position];
            count += 1;
            position += 1;
            let mut jump = |yes: bool| position += usize::from(if yes { at.jt } else { at.jf });
            match at.code {
                LOAD => accumulator = word(at.k),
                AND => accumulator &= at.k,
                JUMP => position += at.k as usize,
                JUMP_EQUAL => jump(accumulator == at.k),
                JUMP_GREATER => jump(accumulator > at.k),
                JUMP_GREATER_EQUAL => jump(accumulator >= at.k),
                RETURN => return (at.k, count),
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::interpret::{Call, run};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO_1: u32 = 0x0005_0001;

    fn one_rule(conditions: Vec<Condition>) -> Program {
        let verdict = Verdict {
            conditional: vec![(conditions, ALLOW)],
            always: None,
        };
        let rules = Rules::from([(5, verdict)]);
        compile(&Filter {
            architectures: BTreeMap::from([(Architecture::X86_64, rules)]),
            default: ERRNO_1,
            foreign: 0,
            unknown: None,
        })
        .unwrap()
    }

    fn verdict(program: &Program, number: u32, first: u64) -> u32 {
        let call = Call {
            number,
            audit: Architecture::X86_64.audit(),
            arguments: [first, 0, 0, 0, 0, 0],
        };
        run(program, &call).0
    }

    #[test]
    fn operators_compare_all_64_bits() {
        let big = 0x1_0000_0005u64;
        type Expected = fn(u64, u64) -> bool;
        let cases: [(Operator, Expected); 6] = [
            (Operator::Equal, |a, b| a == b),
            (Operator::NotEqual, |a, b| a != b),
            (Operator::Less, |a, b| a < b),
            (Operator::LessOrEqual, |a, b| a <= b),
            (Operator::Greater, |a, b| a > b),
            (Operator::GreaterOrEqual, |a, b| a >= b),
        ];
        for (operator, expected) in cases {
            for value in [0, 5, big, u64::MAX] {
                let program = one_rule(vec![Condition {
                    argument: 0,
                    operator,
                    value,
                    masked: 0,
                }]);
                for argument in [0, 4, 5, 6, big - 1, big, big + 1, 0x2_0000_0000, u64::MAX] {
                    let allowed = verdict(&program, 5, argument) == ALLOW;
                    assert_eq!(
                        allowed,
                        expected(argument, value),
                        "{argument:#x} {operator:?} {value:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_mask_looks_at_its_bits_only() {
        let mask = Condition {
            argument: 0,
            operator: Operator::MaskedEqual,
            value: 0x7e02_0000,
            masked: 0,
        };
        let program = one_rule(vec![mask]);
        assert_eq!(verdict(&program, 5, 0x11), ALLOW);
        assert_eq!(verdict(&program, 5, 0x1000_0000), ERRNO_1);
    }

    #[test]
    fn calls_of_another_architecture_or_of_x32_are_foreign() {
        let program = one_rule(Vec::new());
        let call = |number, audit| {
            run(
                &program,
                &Call {
                    number,
                    audit,
                    arguments: [0; 6],
                },
            )
            .0
        };
        assert_eq!(call(5, Architecture::X86_64.audit()), ALLOW);
        assert_eq!(call(5, Architecture::X86.audit()), 0);
        assert_eq!(call(X32_BIT + 5, Architecture::X86_64.audit()), 0);
        assert_eq!(call(6, Architecture::X86_64.audit()), ERRNO_1);
    }
}
