"""The paper's evaluation run again: experiments of many simulated runs, and the report on what came out."""
