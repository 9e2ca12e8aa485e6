"""Columns of Gaia DR3's tables, with their types and units, in the order of the bulk files (gea.esac.esa.int/archive).

`name:type` or `name:type:unit`.
"""

from __future__ import annotations

GAIA_SOURCE = """
solution_id:i8 designation:str source_id:i8 random_index:i8 ref_epoch:f8:yr ra:f8:deg ra_error:f4:mas dec:f8:deg
dec_error:f4:mas parallax:f8:mas parallax_error:f4:mas parallax_over_error:f4 pm:f4:mas.yr**-1 pmra:f8:mas.yr**-1
pmra_error:f4:mas.yr**-1 pmdec:f8:mas.yr**-1 pmdec_error:f4:mas.yr**-1 ra_dec_corr:f4 ra_parallax_corr:f4
ra_pmra_corr:f4 ra_pmdec_corr:f4 dec_parallax_corr:f4 dec_pmra_corr:f4 dec_pmdec_corr:f4 parallax_pmra_corr:f4
parallax_pmdec_corr:f4 pmra_pmdec_corr:f4 astrometric_n_obs_al:i2 astrometric_n_obs_ac:i2
astrometric_n_good_obs_al:i2 astrometric_n_bad_obs_al:i2 astrometric_gof_al:f4 astrometric_chi2_al:f4
astrometric_excess_noise:f4:mas astrometric_excess_noise_sig:f4 astrometric_params_solved:i2
astrometric_primary_flag:bool nu_eff_used_in_astrometry:f4:um**-1 pseudocolour:f4:um**-1
pseudocolour_error:f4:um**-1 ra_pseudocolour_corr:f4 dec_pseudocolour_corr:f4 parallax_pseudocolour_corr:f4
pmra_pseudocolour_corr:f4 pmdec_pseudocolour_corr:f4 astrometric_matched_transits:i2 visibility_periods_used:i2
astrometric_sigma5d_max:f4:mas matched_transits:i2 new_matched_transits:i2 matched_transits_removed:i2
ipd_gof_harmonic_amplitude:f4 ipd_gof_harmonic_phase:f4:deg ipd_frac_multi_peak:i2 ipd_frac_odd_win:i2 ruwe:f4
scan_direction_strength_k1:f4 scan_direction_strength_k2:f4 scan_direction_strength_k3:f4
scan_direction_strength_k4:f4 scan_direction_mean_k1:f4:deg scan_direction_mean_k2:f4:deg
scan_direction_mean_k3:f4:deg scan_direction_mean_k4:f4:deg duplicated_source:bool phot_g_n_obs:i2
phot_g_mean_flux:f8:electron.s**-1 phot_g_mean_flux_error:f4:electron.s**-1 phot_g_mean_flux_over_error:f4
phot_g_mean_mag:f4:mag phot_bp_n_obs:i2 phot_bp_mean_flux:f8:electron.s**-1
phot_bp_mean_flux_error:f4:electron.s**-1 phot_bp_mean_flux_over_error:f4 phot_bp_mean_mag:f4:mag phot_rp_n_obs:i2
phot_rp_mean_flux:f8:electron.s**-1 phot_rp_mean_flux_error:f4:electron.s**-1 phot_rp_mean_flux_over_error:f4
phot_rp_mean_mag:f4:mag phot_bp_rp_excess_factor:f4 phot_bp_n_contaminated_transits:i2 phot_bp_n_blended_transits:i2
phot_rp_n_contaminated_transits:i2 phot_rp_n_blended_transits:i2 phot_proc_mode:i2 bp_rp:f4:mag bp_g:f4:mag
g_rp:f4:mag radial_velocity:f4:km.s**-1 radial_velocity_error:f4:km.s**-1 rv_method_used:i2 rv_nb_transits:i2
rv_nb_deblended_transits:i2 rv_visibility_periods_used:i2 rv_expected_sig_to_noise:f4 rv_renormalised_gof:f4
rv_chisq_pvalue:f4 rv_time_duration:f4:d rv_amplitude_robust:f4:km.s**-1 rv_template_teff:f4:K
rv_template_logg:f4:log(cm.s**-2) rv_template_fe_h:f4:dex rv_atm_param_origin:i2 vbroad:f4:km.s**-1
vbroad_error:f4:km.s**-1 vbroad_nb_transits:i2 grvs_mag:f4:mag grvs_mag_error:f4:mag grvs_mag_nb_transits:i2
rvs_spec_sig_to_noise:f4 phot_variable_flag:str l:f8:deg b:f8:deg ecl_lon:f8:deg ecl_lat:f8:deg
in_qso_candidates:bool in_galaxy_candidates:bool non_single_star:i2 has_xp_continuous:bool has_xp_sampled:bool
has_rvs:bool has_epoch_photometry:bool has_epoch_rv:bool has_mcmc_gspphot:bool has_mcmc_msc:bool
in_andromeda_survey:bool classprob_dsc_combmod_quasar:f4 classprob_dsc_combmod_galaxy:f4
classprob_dsc_combmod_star:f4 teff_gspphot:f4:K teff_gspphot_lower:f4:K teff_gspphot_upper:f4:K
logg_gspphot:f4:log(cm.s**-2) logg_gspphot_lower:f4:log(cm.s**-2) logg_gspphot_upper:f4:log(cm.s**-2)
mh_gspphot:f4:dex mh_gspphot_lower:f4:dex mh_gspphot_upper:f4:dex distance_gspphot:f4:pc
distance_gspphot_lower:f4:pc distance_gspphot_upper:f4:pc azero_gspphot:f4:mag azero_gspphot_lower:f4:mag
azero_gspphot_upper:f4:mag ag_gspphot:f4:mag ag_gspphot_lower:f4:mag ag_gspphot_upper:f4:mag ebpminrp_gspphot:f4:mag
ebpminrp_gspphot_lower:f4:mag ebpminrp_gspphot_upper:f4:mag libname_gspphot:str
"""

_XP_BAND = """
basis_function_id:i2 degrees_of_freedom:i2 n_parameters:i2 n_measurements:i2 n_rejected_measurements:i2
standard_deviation:f4 chi_squared:f4 coefficients:f8[55] coefficient_errors:f4[55] coefficient_correlations:f4[1485]
n_relevant_bases:i2 relative_shrinking:f4
"""
XP_CONTINUOUS = "source_id:i8 solution_id:i8 " + " ".join(f"{b}_{c}" for b in ("bp", "rp") for c in _XP_BAND.split())

_TYPES = {"i8": "int64", "i2": "int16", "f8": "float64", "f4": "float32", "bool": "bool", "str": "string"}


def ecsv_header(columns: str) -> str:
    """The comment lines that open a bulk file: ECSV 1.0, one entry a column."""
    lines = ["# %ECSV 1.0", "# ---", '# delimiter: ","', "# datatype:"]
    for column in columns.split():
        name, kind, *unit = column.split(":")
        scalar, _, length = kind.rstrip("]").partition("[")
        entry = [f"name: {name}", f"datatype: {'string' if length else _TYPES[scalar]}"]
        if length:
            entry.append(f"subtype: '{_TYPES[scalar]}[{length}]'")
        if unit:
            entry.append(f"unit: {unit[0]}")
        lines.append("# - {" + ", ".join(entry) + "}")
    return "\n".join(lines) + "\n"
