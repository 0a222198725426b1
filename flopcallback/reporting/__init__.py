"""Outputs for people: tables, figures and pages made from a profile."""

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary, ModuleRow, OperatorRow, StepFlops
from flopcallback.profile.verdict import EngineDifference, Verdict
from flopcallback.reporting.caption import footer, headline
from flopcallback.reporting.figures.bars import module_chart
from flopcallback.reporting.figures.canvas import pixels
from flopcallback.reporting.figures.charts import latency_chart
from flopcallback.reporting.files import report_files, write_file
from flopcallback.reporting.findings import Finding, findings
from flopcallback.reporting.flops_and_time import measured_leaves, rank_correlation, slow_for_their_flops
from flopcallback.reporting.line import counts_line, profile_line
from flopcallback.reporting.measured import measured_points
from flopcallback.reporting.page.page import html_page
from flopcallback.reporting.text.markdown import escaped, markdown_modules, markdown_operators, markdown_top
from flopcallback.reporting.text.module_table import module_table, operator_table
from flopcallback.reporting.text.table import plain_table, rich_table, rich_text
from flopcallback.reporting.tree import widest_work
from flopcallback.reporting.units import milliseconds, percent, si
from flopcallback.reporting.verdict import verdict_line

__all__ = [
    "EngineDifference",
    "Finding",
    "LatencySummary",
    "ModelProfile",
    "ModuleRow",
    "OperatorRow",
    "StepFlops",
    "Verdict",
    "counts_line",
    "escaped",
    "findings",
    "footer",
    "headline",
    "html_page",
    "latency_chart",
    "markdown_modules",
    "markdown_operators",
    "markdown_top",
    "measured_leaves",
    "measured_points",
    "milliseconds",
    "module_chart",
    "module_table",
    "operator_table",
    "percent",
    "pixels",
    "plain_table",
    "profile_line",
    "rank_correlation",
    "report_files",
    "rich_table",
    "rich_text",
    "si",
    "slow_for_their_flops",
    "verdict_line",
    "widest_work",
    "write_file",
]
